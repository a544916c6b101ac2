"""Names of methods with their numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import methods
from jaxdiff.methods import legacy, parse_cache, parse_grid, parse_guidance, parse_sampler
from jaxdiff.networks import DeepCache, FirstBlock, TaylorSeer
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler, tableau

PROCESS = jd.VP()


def alike(one: Any, other: Any) -> bool:
    """The same class with the same numbers: a row may write them as another type."""
    kinds: list[Any] = [jax.tree.structure(each) for each in (one, other)]
    return kinds[0] == kinds[1] and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_numbers_by_place_and_by_name() -> None:
    for text, expected in {
        "unipc": jd.UniPC(PROCESS),
        "unipc:2": jd.UniPC(PROCESS, 2),
        " unipc: order = 2 , corrector=False": jd.UniPC(PROCESS, 2, corrector=False),
        "unipc:2,B1,corrector": jd.UniPC(PROCESS, 2, "B1"),
        "heun:rho": jd.Heun(PROCESS, "rho"),
        "ddim": jd.DDIM(PROCESS),
        "ddim:0": jd.DDIM(PROCESS),
        "ddim:eta=5e-1": jd.DDIM(PROCESS, 0.5),
        "ddpm:learned": jd.DDPM(PROCESS, "learned"),
        "adaptive:1e-4": jd.Adaptive(PROCESS, rtol=1e-4, atol=1e-4),
        "adaptive:tableau=dormand_prince,max_evaluations=50": jd.Adaptive(
            PROCESS, tableau.DORMAND_PRINCE, max_evaluations=50
        ),
        "sa_solver:2,tau=0.5": jd.SASolver(PROCESS, 2, 3, 0.5),
        "sa_solver:2,corrector_order=0,rho_max=inf": jd.SASolver(PROCESS, 2, 0),
        "edm_stochastic:0.1,noise_scale=1.003": jd.EDMStochastic(PROCESS, 0.1, noise_scale=1.003),
        "predictor_corrector:0.1,2": jd.PredictorCorrector(jd.ReverseDiffusion(PROCESS), jd.Langevin(0.1, 2)),
        "predictor_corrector:predictor=unipc(order=2,variant=B1),corrector=annealed": jd.PredictorCorrector(
            jd.UniPC(PROCESS, 2, "B1"), jd.AnnealedLangevin(0.16)
        ),
        "restart": jd.Restart(jd.DPMpp2M(PROCESS)),
        "restart:heun(rho),repeats=3": jd.Restart(jd.Heun(PROCESS, "rho"), repeats=3),
        "restart:inner=restart(inner=euler,steps=1),rho_max=1": jd.Restart(
            jd.Restart(jd.Euler(PROCESS), steps=1), rho_max=1.0
        ),
    }.items():
        assert alike(parse_sampler(text, PROCESS), expected), text
    for text, elements in {
        "cfg:2": (jd.CFG(2.0),),
        "cfg:2,sequential": (jd.CFG(2.0, sequential=True),),
        "interval:0.2,5": (jd.Interval(0.2, 5.0),),
        "interval:high=5": (jd.Interval(0.0, 5.0),),
        "every:3": (jd.Reuse(3),),
    }.items():
        assert parse_guidance(text) == parse_guidance([text]) == elements, text
    assert parse_cache("deepcache:3,outer=2") == DeepCache(3, 2)
    assert parse_cache("taylorseer:4,order=2,whole") == TaylorSeer(4, 2, whole=True)
    assert parse_cache("firstblock:0.2,together=true") == FirstBlock(0.2, together=True)
    np.testing.assert_array_equal(parse_grid("karras:5")(PROCESS, 7), jd.karras_times(PROCESS, 7, rho=5.0))
    late = parse_grid("log_snr:t_max=0.5,t_min=none")(PROCESS, 7)
    np.testing.assert_array_equal(late, jd.log_snr_times(PROCESS, 7, t_max=0.5))


def test_objects_pass_through() -> None:
    sampler, cache = jd.UniPC(PROCESS, 2), DeepCache()
    assert parse_sampler(sampler, PROCESS) is sampler and parse_cache(cache) is cache
    assert parse_grid(jd.karras_times) is jd.karras_times
    twice: Any = lambda denoise: denoise  # noqa: E731
    assert parse_guidance([jd.CFG(1.0), "every:2", twice]) == (jd.CFG(1.0), jd.Reuse(2), twice)
    assert parse_guidance(()) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unipcc", r"^there is no sampler 'unipcc'; did you mean 'unipc'\? \(known: ddpm, .*, restart\)$"),
        (
            "unipc:oder=2",
            r"^unipc:oder=2: unipc has no number 'oder'; did you mean 'order'\? It has order=3,variant=B2,",
        ),
        ("euler:size=2", r"euler has no number 'size'\. It has none"),
        ("unipc:2.0", "^unipc:2.0: order is to be a whole number, got '2.0'$"),
        ("unipc:order=", "order is to be a whole number, got ''"),
        ("unipc:2,B1,maybe", "corrector is to be true or false, got 'maybe'"),
        ("unipc:2,B3", "variant is to be B1 or B2, got 'B3'"),
        ("unipc:2,B1,true,4", "unipc takes at most 3 numbers, '4' is one more. It has order=3"),
        ("euler:3", "euler takes no numbers"),
        ("unipc:variant=B1,3", "'3' stands behind numbers with names: give it its name too"),
        ("unipc:order=2,order=3", "order is given twice"),
        ("unipc:2,order=3", "order is given twice"),
        ("unipc:9", r"^unipc:9: the order of UniPC is to be 1 to 4, got 9$"),
        ("ddim:eta=nan", "eta is to be a number, got 'nan'"),
        ("edm_stochastic:much", "gamma is to be a number, got 'much'"),
        ("sa_solver:corrector_order=x", "corrector_order is to be a whole number or none, got 'x'"),
        ("adaptive:tableau=best", "tableau is to be one of euler, .*dormand_prince, got 'best'"),
        ("restart:inner=hein", r"^restart:inner=hein: there is no sampler 'hein'; did you mean 'heun'\?"),
        ("restart:inner=unipc(order=9)", "order of UniPC is to be 1 to 4"),
        ("restart:inner=unipc(order=2", "its parentheses do not match"),
        ("restart:inner=unipc)order=2(", "its parentheses do not match"),
        ("restart:inner=unipc(order=2)x", r"inner is to be a sampler, such as unipc\(order=2\), got"),
        ("restart:rho_min=2", "restarts need 0 < rho_min < rho_max"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_typed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sampler(text, PROCESS)


def test_guidance_and_caches_are_told_likewise() -> None:
    parse: Any
    for parse, text, message in (
        (parse_guidance, "cfg", "^cfg: cfg needs weight, for instance cfg:2$"),
        (parse_guidance, "cgf:2", "there is no guidance 'cgf'; did you mean 'cfg'"),
        (
            parse_guidance,
            "interval:5,1",
            "^interval:5,1: guidance needs an interval of sigma/alpha with 0 <= low < high",
        ),
        (parse_guidance, "every:0", "every is to be a whole number, 1 or more"),
        (parse_guidance, "every:2.5", "every is to be a whole number, got '2.5'"),
        (parse_guidance, "2", "there is no guidance '2'; did you mean 'cfg:2'"),
        (parse_cache, 3, "a cache is a name with its numbers, such as 'deepcache:3', or an object, got 3"),
        (parse_grid, 3, r"a grid is a name, such as 'karras', or a function \(process, steps\) -> times, got 3"),
        (parse_cache, "deepcash", "there is no cache 'deepcash'; did you mean 'deepcache'"),
        (parse_cache, "taylorseer:4,order=-1", "order is to be an integer, 0 or more"),
        (parse_grid, "karas", r"there is no grid 'karas'; did you mean 'karras'\? \(known: uniform"),
        (parse_grid, "karras:rho=x", "rho is to be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_a_row_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class or a function; what a person cannot write keeps its default."""

    monkeypatch.setitem(methods.SAMPLERS, "mine", Mine)
    monkeypatch.setitem(methods.SAMPLERS, "half", lambda process, order=2: jd.UniPC(process, order))
    monkeypatch.setitem(methods.GRIDS, "mine", lambda process, n, power=2.0: 1.0 - 0.9 * jnp.linspace(0, 1, n) ** power)
    made = parse_sampler("mine:0.5,kind=b,inner=heun(rho)", PROCESS)
    assert isinstance(made, Mine) and (made.size, made.kind, made.inner) == (0.5, "b", jd.Heun(PROCESS, "rho"))
    assert parse_sampler("half:order=1", PROCESS) == jd.UniPC(PROCESS, 1)
    np.testing.assert_allclose(parse_grid("mine:power=1")(PROCESS, 3), [1.0, 0.55, 0.1], rtol=1e-6)
    shown = dict(methods.describe(methods.SAMPLERS))
    assert shown["mine:SIZE,kind=a,inner=none"] == "A sampler of one's own."
    with pytest.raises(ValueError, match="mine needs size, for instance mine:2"):
        parse_sampler("mine", PROCESS)


@record
class Mine(Sampler):
    """A sampler of one's own. More of it."""

    size: float
    table: tuple[tuple[float, ...], ...] = field(default=((1.0,),), pytree_node=False)
    kind: Literal["a", "b"] = field(default="a", pytree_node=False)
    inner: Sampler | None = None

    def step(self, denoise: Any, noise: Any, state: Any, x: Any, t: Any, s: Any) -> Any:
        return x, state


def test_every_row_can_be_written_as_it_is_described() -> None:
    """The text that `describe` shows, defaults and all, makes what the bare name does."""
    for signature, about in methods.describe(methods.SAMPLERS):
        name = signature.partition(":")[0]
        assert alike(parse_sampler(signature, PROCESS), parse_sampler(name, PROCESS)), signature
        assert about.endswith(".") and len(about) > 10
    for signature, _ in methods.describe(methods.GRIDS):
        there, bare = (parse_grid(text)(PROCESS, 5) for text in (signature, signature.partition(":")[0]))
        np.testing.assert_array_equal(there, bare)
    for signature, _ in methods.describe(methods.CACHES):
        assert parse_cache(signature) == parse_cache(signature.partition(":")[0])
    assert [text for text, _ in methods.describe(methods.GUIDANCE)] == [
        "cfg:weight=none,sequential=false,schedule=constant,NAME=...",
        "and:weight=1,NAME=...",
        "not:weight=1,NAME=...",
        "apg:WEIGHT,eta=0,norm=inf,momentum=-0.5,sequential=false",
        "cfgpp:WEIGHT,sequential=false",
        "cfgzero:WEIGHT,zero=0,sequential=false",
        "tcfg:WEIGHT,sequential=false",
        "fdg:LOW,HIGH,levels=1,sequential=false",
        "classifier:SCALE,run=none,label=none",
        "autoguidance:WEIGHT,run=none,step=none,average=",
        "pag:SCALE,layers=none",
        "seg:scale=3,sigma=inf,layers=none",
        "slg:SCALE,layers=none",
        "interval:low=0,high=inf",
        "every:EVERY",
        "rescale:phi=0.7",
        "static:limit=1",
        "dynamic:quantile=0.995,limit=1",
    ]


def test_samplers_of_their_own_steps_take_the_ends_of_a_grid() -> None:
    whole = jd.karras_times(PROCESS, 9)
    np.testing.assert_array_equal(methods.times(jd.UniPC(PROCESS), "karras", 9), whole)
    np.testing.assert_array_equal(methods.times(jd.Adaptive(PROCESS), jd.karras_times, 9), whole[jnp.array([0, -1])])
    assert methods.times(jd.Adaptive(PROCESS), "karras", 1).shape == (1,)
    own = {name for name in methods.SAMPLERS if parse_sampler(name, PROCESS).own_steps}
    assert own == {"adaptive"}


NUMBERS: dict[str, tuple[Any, ...]] = {
    "order": (None, 1, 2),
    "eta": (0.0, 0.7),
    "variance": ("fixed_large", "fixed_small"),
    "tau": (1.0, 0.0, 0.25),
    "tolerance": (1e-3, 2e-4),
    "snr": (0.16, 0.05),
    "langevin_steps": (None, 3),
    "churn": (0.15625, 0.1),
}


def _order(options: dict[str, Any]) -> dict[str, Any]:
    return {} if options["order"] is None else {"order": options["order"]}


# The table of version 0.1.0 (jaxdiff/config/build.py there), which made samplers of a configuration's flat options.
VERSION_0_1_0: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ddpm": lambda o: jd.DDPM(PROCESS, variance=o["variance"]),
    "ddim": lambda o: jd.DDIM(PROCESS, eta=o["eta"] or None),
    "euler": lambda o: jd.Euler(PROCESS),
    "dpm2": lambda o: jd.DPM2(PROCESS),
    "rk4": lambda o: jd.RK4(PROCESS),
    "adaptive": lambda o: jd.Adaptive(PROCESS, rtol=o["tolerance"], atol=o["tolerance"]),
    "dpm_solver": lambda o: jd.DPMSolver(PROCESS, **_order(o)),
    "dpmpp_2s": lambda o: jd.DPMpp2S(PROCESS),
    "dpmpp_2m": lambda o: jd.DPMpp2M(PROCESS),
    "dpmpp_3m": lambda o: jd.DPMpp3M(PROCESS),
    "unipc": lambda o: jd.UniPC(PROCESS, **_order(o)),
    "deis": lambda o: jd.DEIS(PROCESS, **_order(o)),
    "lms": lambda o: jd.LMS(PROCESS, **_order(o)),
    "ipndm": lambda o: jd.IPNDM(PROCESS, **_order(o)),
    "euler_maruyama": lambda o: jd.EulerMaruyama(PROCESS, o["tau"]),
    "reverse_diffusion": lambda o: jd.ReverseDiffusion(PROCESS, o["tau"]),
    "predictor_corrector": lambda o: jd.PredictorCorrector(
        jd.ReverseDiffusion(PROCESS, o["tau"]),
        jd.Langevin(o["snr"], 1 if o["langevin_steps"] is None else o["langevin_steps"]),
    ),
    "annealed_langevin": lambda o: jd.AnnealedLangevinDynamics(
        PROCESS, **({} if o["langevin_steps"] is None else {"steps": o["langevin_steps"]})
    ),
    "dpmpp_sde": lambda o: jd.DPMppSDE(PROCESS, o["tau"]),
    "dpmpp_2m_sde": lambda o: jd.DPMpp2MSDE(PROCESS, o["tau"]),
    "dpmpp_3m_sde": lambda o: jd.DPMpp3MSDE(PROCESS, o["tau"]),
    "sa_solver": lambda o: jd.SASolver(
        PROCESS,
        **({} if o["order"] is None else {"predictor_order": o["order"], "corrector_order": o["order"] + 1}),
        tau=o["tau"],
    ),
    "euler_ancestral": lambda o: jd.EulerAncestral(PROCESS, o["tau"]),
    "edm_stochastic": lambda o: jd.EDMStochastic(PROCESS, o["churn"]),
    "restart": lambda o: jd.Restart(jd.DPMpp2M(PROCESS)),
}


def test_options_of_version_0_1_0_in_the_new_words() -> None:
    """Each sampler that a configuration made of flat options is what their new spelling makes."""
    added = {"heun", "edict", "belm", "recurrent"}  # heun has come to mean Karras' method
    assert set(methods.SAMPLERS) == {*VERSION_0_1_0, *added}
    usual = {name: values[0] for name, values in NUMBERS.items()}
    for name, row in VERSION_0_1_0.items():
        for option, values in NUMBERS.items():
            for value, tau in itertools.product(values, (1.0, 0.5)):
                flat = {**usual, "tau": tau, option: value}
                assert alike(parse_sampler(legacy(name, **flat), PROCESS), row(flat)), (name, flat)
        assert legacy(name, **usual) == legacy(name) == name  # what was left out stays out


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("DDIM", "ddim"),
        ("UniPC(order=2)", "unipc"),
        ("DPM++2M", "dpmpp_2m"),
        ("DPMpp2M", "dpmpp_2m"),
        ("EulerMaruyama", "euler_maruyama"),
        ("AnnealedLangevinDynamics", "annealed_langevin"),
    ],
)
def test_the_names_of_classes_and_papers_lead_to_those_of_methods(written: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {name!r}"):
        parse_sampler(written, PROCESS)
    assert parse_sampler("unipc: order = 2", PROCESS) == parse_sampler("unipc:order=2", PROCESS)


@pytest.mark.parametrize("wrong", [None, 3, jd.DDIM])
def test_what_is_no_sampler_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a sampler is a name with its numbers, such as 'ddim', or an object"):
        parse_sampler(wrong, PROCESS)
