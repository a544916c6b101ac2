"""Equations as docstrings write them, in plain letters, as LaTeX.

A docstring sets an equation in an indented block, numbered at its end, so that it reads well in a terminal:

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I)                                              (1)

`latex` turns such a block into rows of `align*`. A block that is no equation (a table, a command) is
left alone.
"""

from __future__ import annotations

import re


def words(text: str) -> set[str]:
    return set(text.split())


GREEK = words("alpha beta gamma delta eta theta lambda mu nu xi pi rho sigma tau phi psi omega")
GREEK |= words("Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega")
FUNCTIONS = words("exp ln log min max cos sin tan cot arctan det")
SMALL = words("is if of to or by at et al it on as")
SYMBOLS = {
    "eps": r"\varepsilon",
    "epsilon": r"\epsilon",
    "abar": r"\bar\alpha",
    "betatilde": r"\tilde\beta",
    "sum": r"\sum",
    "prod": r"\prod",
    "int": r"\int",
    "integral": r"\int",
    "grad": r"\nabla",
    "div": r"\operatorname{div}",
    "mod": r"\bmod",
    "infinity": r"\infty",
}
NAMES = words(
    "softmax mean median diag tr logistic rms sign silu norm attention mlp conv SNR KL DDIM skip shift scale gate"
)
NAMES |= words(
    "shift scale gate dropout snr lr spike decay bpd expm1 velocity score output target prior update var ema"
)
OPERATORS = {
    "<=": r"\le",
    ">=": r"\ge",
    "->": r"\to",
    "<-": r"\leftarrow",
    "!=": r"\ne",
    "+-": r"\pm",
    "||": r"\,\|\,",
    "...": r"\ldots",
    "*": r"\ast",
    "~": r"\sim",
    "%": r"\%",
    "#": r"\#",
    "&": r"\&",
}
TOKEN = re.compile(
    r"""(?P<gap>\ {2,})|(?P<space>\ )
    |(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
    |(?P<quoted>"[^"]*"|[A-Z]'s\b)
    |(?P<name>(?:log|[a-z]{5,})_[a-z]{3,})
    |(?P<word>[A-Za-z]+\d*)
    |(?P<op><=|>=|->|<-|!=|\+-|\|\||\.\.\.|[*~%\#&])
    |(?P<other>.)""",
    re.VERBOSE,
)
PROSE = re.compile(r"[A-Za-z]{3,}")


def is_prose(word: str) -> bool:
    """Whether a word is of the language rather than of mathematics."""
    known = GREEK | FUNCTIONS | NAMES | SYMBOLS.keys() | {"sqrt", "log2"}
    stem = word.rstrip("0123456789")
    return bool(PROSE.fullmatch(stem)) and stem not in known and word not in known and not differential(word)


def differential(word: str) -> bool:
    """``dx``, ``dlambda``, ``dSNR``."""
    return len(word) > 1 and word[0] == "d" and (len(word) == 2 or word[1:] in GREEK | NAMES)


def symbol(word: str) -> str:
    if word in SYMBOLS:
        return SYMBOLS[word]
    if word in GREEK or word in FUNCTIONS:
        return "\\" + word
    if word == "log2":
        return r"\log_2"
    if differential(word):
        return "d" + symbol(word[1:])
    stem, digits = re.fullmatch(r"([A-Za-z]+)(\d*)", word).groups()  # type: ignore[union-attr]
    if digits and stem not in NAMES and len(stem) <= 5 and (stem in GREEK or len(stem) == 1):  # x0, b1
        return f"{symbol(stem)}_{{{digits}}}"
    if word.isalpha() and (len(word) == 1 or word in {"ij", "ii", "jk"}):
        return word
    return rf"\operatorname{{{word}}}" if word in NAMES or stem in NAMES else rf"\mathrm{{{word}}}"


def closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at ``start``, or -1."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    opening, close, depth = text[start], pairs[text[start]], 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == close)
        if depth == 0:
            return place
    return -1


def script(text: str, place: int, held: list[str]) -> tuple[str, int]:
    """What stands in a sub- or superscript from ``place`` on, as LaTeX, and where it ends."""
    if text[place] in "{(" and (end := closing(text, place)) > 0:
        return formula(text[place + 1 : end], held), end + 1
    match = re.compile(r"-?\d+(?:\.\d+)?[a-z]?|[A-Za-z]+\d*|.").match(text, place)
    assert match is not None
    word = match.group()
    return (symbol(word) if word[0].isalpha() else word), match.end()


ATOM = r"(?:[A-Za-z]+\d*|\d+(?:\.\d+)?)'?(?:[_^](?:\{[^{}]*\}|-?[A-Za-z0-9]+))*'?"
GROUP = r"\((?:[^()]|\([^()]*\))*\)"
DERIVATIVE = re.compile(rf"\b(d ?{ATOM})/(d (?:ln )?{ATOM})")
FRACTION = re.compile(rf"(?<![\w)}}'^.|])({ATOM}|{GROUP})/(sqrt{GROUP}|{ATOM}|{GROUP})(?![\w(!^|'.]|_)")
HELD = 0xE000  # private characters that stand for what is LaTeX already


def formula(text: str, held: list[str] | None = None) -> str:
    """One formula, without its number, as LaTeX.

    >>> print(formula("x_t = alpha(t) x_0 + sigma_t eps"))
    x_{t} = \\alpha(t) x_{0} + \\sigma_{t} \\varepsilon
    >>> print(formula("sqrt(alpha_{k-1}) beta_k/(1 - abar_k)"))
    \\sqrt{\\alpha_{k-1}} \\frac{\\beta_{k}}{1 - \\bar\\alpha_{k}}
    >>> print(formula("E|x^_0 - x_0|^2,  i < n"))
    \\mathbb{E}|\\hat{x}_{0} - x_{0}|^{2},\\quad i < n
    """
    held = list(held or [])

    def hold(match: re.Match[str]) -> str:
        above, below = (
            part[1:-1] if part[0] == "(" and closing(part, 0) == len(part) - 1 else part for part in match.groups()
        )
        held.append(rf"\frac{{{formula(above, held)}}}{{{formula(below, held)}}}")
        return chr(HELD + len(held) - 1)

    text = re.sub(r"integral of (.+?) from (\S+) to (\w+)", r"int_{\2}^{\3} \1", text)
    text = re.sub(r"\s*\*\*\s*", "^", re.sub(r"integral of", "int", text))
    text = FRACTION.sub(hold, DERIVATIVE.sub(hold, text))
    text = re.sub(rf"(?<![\w'}}])\(([{chr(HELD)}-{chr(HELD + 99)}])\)(?!\^)", r"\1", text)  # (a/b) x
    parts: list[str] = []
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        assert match is not None
        kind, word, start, place = match.lastgroup, match.group(), match.start(), match.end()
        following, before = text[place : place + 1], text[start - 1 : start] if start else ""
        end = closing(text, start) if word in "([{" else closing(text, place) if following == "(" else -1
        if kind == "gap":
            parts.append(r"\quad " if len(word) < 4 else r"\qquad ")
        elif kind == "number":
            mantissa, _, exponent = word.partition("e")
            parts.append(mantissa + (rf" \cdot 10^{{{exponent}}}" if exponent else ""))
        elif kind == "quoted":
            parts.append(rf"\text{{{word}}}")
        elif kind == "name":
            parts.append(r"\operatorname{" + word.replace("_", r"\_") + "}")
        elif word == "sqrt" and end > 0:
            parts.append(rf"\sqrt{{{formula(text[place + 1 : end], held)}}}")
            place = end + 1
        elif word == "E" and re.match(r"[\[|_(]| \|", text[place:]):
            parts.append(r"\mathbb{E}")
        elif word in ("N", "U") and following == "(":
            parts.append(rf"\mathcal{{{word}}}")
        elif word == "in" and before == " ":
            parts.append(r"\in")
        elif kind == "word" and (is_prose(word) or word in SMALL):
            run = re.compile(r"[A-Za-z][A-Za-z']*(?:[ -][A-Za-z][A-Za-z']*)*").match(text, start)
            assert run is not None
            said = re.split(r"([ -])", run.group())
            while len(said) > 1 and not is_prose(said[-1]) and said[-1] not in SMALL:
                said.pop()
            prose = "".join(said)
            place = start + len(prose)
            gaps = [" " if text[at : at + 1] == " " else "" for at in (start - 1, place) if at >= 0]
            parts.append(rf"\text{{{gaps[0] if start else ''}{prose}{gaps[-1]}}}")
        elif kind == "word" and re.match(r"[\^~](?:[_|)\s,]|$)", text[place:]):  # x^_0 is x with a hat
            parts.append(rf"\{'hat' if following == '^' else 'tilde'}{{{symbol(word)}}}")
            place += 1
        elif kind == "word" and following == "_" and re.fullmatch(r"[A-Za-z]\d", word):  # x0_j
            inside, place = script(text, place + 1, held)
            parts.append(f"{word[0]}_{{{word[1]},{inside}}}")
        elif kind == "word":
            thin = r"\," if before == " " and (differential(word) or (word == "d" and following == " ")) else ""
            parts.append(thin + symbol(word))
        elif word in ("_", "^") and following not in ("", " "):
            inside, place = script(text, place, held)
            parts.append(f"{word}{{{inside}}}")
        elif word in ("(", "[") and end > 0 and r"\frac" in (inside := formula(text[place:end], held)):
            parts.append(rf"\left{word}{inside}\right{text[end]}")
            place = end + 1
        elif word == "<" and following not in (" ", "=", ""):
            parts.append(r"\langle ")
        elif word == ">" and before not in (" ", ""):
            parts.append(r"\rangle ")
        elif word == "." and re.fullmatch(r"[^\s\d]\.\S|[\[( ]\.[ \]]", f"{before}.{following}"):  # a.b, |.|, E[. | x]
            parts.append(r"\cdot ")
        elif kind == "op":
            parts.append(OPERATORS[word] + ("" if following in (" ", "") else " "))
        else:
            parts.append("\\" + word if word in ("{", "}") else word)
    made = "".join(parts)
    return "".join(held[ord(c) - HELD] if HELD <= ord(c) < HELD + len(held) else c for c in made)


NUMBER_LAST = re.compile(r"^(.*?)\s{2,}\(((?:\d+)(?:, \w+)?)\)$")
NUMBER_FIRST = re.compile(r"^\((\d+)\)\s+(.*)$")


def latex(lines: list[str]) -> list[str] | None:
    """The rows of `align*` that set a docstring's block, or None where it is not an equation.

    >>> latex(["    dx = f x dt + g dw           (3)"])
    ['& dx = f x \\\\,dt + g \\\\,dw \\\\tag{3}']
    >>> latex(["    SNR      the error in eps      Ho et al. 2020"]) is None
    True
    """
    base = min(len(line) - len(line.lstrip()) for line in lines)
    found = [word for line in lines for word in re.findall(r"(?<![\w{}])[A-Za-z]+\d*", line)]
    prose = [word for word in found if is_prose(word)]
    relations = sum(bool(re.search(r"(?: |^)(?:=|<=|~|<-) ", line)) for line in lines)
    columns = sum(bool(re.match(r"\s*\S+ ?\S*\s{3,}[a-z]{2,} ", line)) for line in lines)
    if len(prose) > 0.35 * len(found) or columns:
        return None
    if relations < 0.4 * len(lines) and not re.search(r"\(\d+\)$", lines[0]):
        return None
    if any("`" in line or re.search(r"\w\.\w+\(|^\s*\|.*\|\s+\|", line) for line in lines):
        return None
    lines = re.sub(r"([-+=])\n\s*(?=\S)", r"\1 ", "\n".join(lines)).split("\n")  # a line that was too long
    rows = []
    for line in lines:
        indent, line = len(line) - len(line.lstrip()) - base, line.strip()
        number = ""
        if match := NUMBER_LAST.match(line):
            line, number = match.groups()
        elif match := NUMBER_FIRST.match(line):
            number, line = match.groups()
        row = "& " + (r"\qquad " if indent else "") + formula(re.sub(r"\s{2,}(?==|<=)", " ", line.rstrip()))
        rows.append(row + (rf" \tag{{{number}}}" if number else ""))
    return rows
