"""How the modules of a LoRA are spelled in the layouts of diffusers and of kohya's scripts.

PEFT, as diffusers writes it    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight
older diffusers                 unet...attn1.to_q.lora.down.weight, ...attn1.processor.to_q_lora.down.weight,
                                text_encoder...mlp.fc1.lora_linear_layer.down.weight
kohya                           lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, and .alpha

A name of kohya's cannot be read: of ``to_out_0`` no one knows which ``_`` was a dot. So each known name is spelled as
kohya would, and looked up. Its U-Nets of Stable Diffusion XL have the names of the original code (CompVis' latent
diffusion, "LDM"), such as ``input_blocks_4_1`` for ``down_blocks.1.attentions.0``; its FLUX.1 and Stable Diffusion 3
those of `jaxdiff.pretrained.adapters.lora_originals`, which other programs write too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxdiff.pretrained.adapters.lora_originals import FIRST_NAMES

_OTHER_METHODS = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoRA with a third factor (LoCon's CP decomposition)",
    "dora_scale": "a DoRA, whose weights are normalised",
    "lora_magnitude_vector": "a DoRA, whose weights are normalised",
    "lora_embedding_": "a LoRA of embeddings",
    "oft_": "an OFT",
    "boft_": "a BOFT",
    "ia3_": "an IA3",
    "query_norm.scale": "a control LoRA of FLUX.1, which changes norms, biases and the number of channels too",
    "key_norm.scale": "a control LoRA of FLUX.1, which changes norms, biases and the number of channels too",
    "lora_A.bias": "a LoRA with biases",
    "lora_B.bias": "a LoRA with biases",
}
"""Parts of names that are of other methods, and what those are."""
WHOLE_CHANGES = (".diff", ".diff_b")
"""Ends of names of the changes of a weight or a bias without factors; programs write them where they are zero too."""
_PARTS = r"(unet|transformer|text_encoder(?:_\d)?)"
_KOHYA = {"unet": "unet", "transformer": "transformer", "te": "text_encoder", "te1": "text_encoder"}
_COMFY = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_ENDS = [
    r"(?P<module>.+)\.lora_(?P<side>[AB]|down|up)\.weight",
    r"(?P<module>.+)\.(?:lora|lora_linear_layer)\.(?P<side>down|up)\.weight",
    r"(?P<module>.+)_lora\.(?P<side>down|up)\.weight",
    r"(?P<module>.+)\.(?P<side>alpha)",
]
_BY_AUTHORS = re.compile(
    rf"(?:diffusion_model\.|base_model\.model\.|(?={'|'.join(FIRST_NAMES)}))"
    r"(?:(?P<xlabs>.+\.processor\.\w+_lora\d?)\.(?P<step>down|up)\.weight"
    r"|(?P<module>.+)\.(?:lora_(?P<side>[AB]|down|up)\.weight|(?P<alpha>alpha)))"
)
_OF_UNET = {"to_out": "to_out.0"}
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Key(NamedTuple):
    """What a tensor of a file is.

    Attributes:
      part: ``unet``, ``transformer``, ``text_encoder``, ``text_encoder_2``, ``text_encoder_3``: the folder of its
        network; ``unet`` also of any denoiser, ``text_encoder_3`` of T5 too where that is the second.
      module: that it changes, as the file spells it.
      what: ``down``, ``up`` or ``alpha``.
    """

    part: str
    module: str
    what: str


def other_method(name: str) -> str | None:
    """What a tensor is of that is no LoRA; None: that is not known of it.

    >>> other_method("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a")
    'a LoHa'
    """
    if name.endswith(WHOLE_CHANGES):
        return "a change of a whole weight or bias"
    return next((what for part, what in _OTHER_METHODS.items() if part in name), None)


def parsed(name: str) -> Key | None:
    """What a tensor is; None: nothing that is known.

    >>> parsed("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    Key(part='unet', module='mid_block.attentions.0.proj_in', what='down')
    >>> parsed("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight").module
    'mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'
    >>> parsed("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha")
    Key(part='text_encoder_2', module='text_model_encoder_layers_0_mlp_fc1', what='alpha')
    >>> parsed("double_blocks.0.processor.qkv_lora1.down.weight")
    Key(part='unet', module='double_blocks.0.processor.qkv_lora1', what='down')
    """
    if found := re.fullmatch(r"lora_(unet|transformer|te\d?)_([^.]+)\.(?:lora_(down|up)\.weight|(alpha))", name):
        part, module, side, alpha = found.groups()
        return Key(_KOHYA.get(part, f"text_encoder_{part[2:]}"), module, side or alpha)
    if found := _BY_AUTHORS.fullmatch(name):
        side = found["step"] or found["alpha"] or _SIDES[found["side"]]
        return Key("unet", found["xlabs"] or found["module"], side)
    if found := re.fullmatch(r"text_encoders\.(\w+)\.transformer\.(.+)", name):
        name = f"{_COMFY.get(found[1], found[1])}.{found[2]}"
    if not (named := re.fullmatch(rf"{_PARTS}\.(.+)", name)):
        return None
    part, rest = named.groups()
    for number, end in enumerate(_ENDS):
        if found := re.fullmatch(end, rest.replace(".processor.", ".")):
            module, side = found["module"], found["side"]
            if number == 2:  # of the processors of attention, which had names of their own for what they change
                folder, _, last = module.rpartition(".")
                own = _OF_TEXT if part.startswith("text_encoder") else _OF_UNET
                module = f"{folder}.{own.get(last, last)}"
            return Key(part, module, _SIDES.get(side, side))
    return None


def spellings(modules: Iterable[str], text: bool) -> dict[str, str]:
    """The known modules of a network by each of their spellings.

    Args:
      modules: by their published names.
      text: of CLIP, whose names began with ``text_model.`` before transformers 5.6.

    >>> known = spellings(["down_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1"], False)
    >>> known["input_blocks_1_1_proj_in"]
    'down_blocks.0.attentions.0.proj_in'
    """
    modules = list(modules)
    found = {name: name for name in modules}
    if text:
        found |= {f"text_model.{name}": name for name in modules}
    ldm = {older: name for name in modules if (older := _of_ldm(name, modules)) is not None}
    for spelled, name in [*found.items(), *ldm.items()]:
        flat = spelled.replace(".", "_")
        if found.setdefault(flat, name) != name:
            raise ValueError(f"{name} and {found[flat]} are both spelled {flat}")
    return found


def written(part: str, module: str) -> str:
    """A module's name in a file that PEFT and diffusers read: CLIP's begins with ``text_model.``, which diffusers takes
    away where its transformers has it no more.

    >>> written("text_encoder", "encoder.layers.0.mlp.fc1")
    'text_encoder.text_model.encoder.layers.0.mlp.fc1'
    """
    clip = part.startswith("text_encoder") and module.startswith("encoder.layers.")
    return f"{part}.text_model.{module}" if clip else f"{part}.{module}"


_RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _of_ldm(name: str, modules: Iterable[str]) -> str | None:
    """The name in the original code of a U-Net's module; None: it is no U-Net's.

    With b residual blocks a level, each level's row of blocks is b + 1 long: its resampling is the last of the way down
    (after ``input_blocks.0``, the first convolution), and a part of the last block of the way up, which has b + 1.
    """
    if name in _TOP:
        return _TOP[name]
    down = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
    blocks = len({found[1] for each in modules if (found := down.match(each))})
    found = re.fullmatch(
        r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if found is not None:
        way, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        row = level * (blocks + 1)
        if kind == "downsamplers":
            return f"input_blocks.{row + blocks + 1}.0.op"
        if kind == "upsamplers":
            after = any(each.startswith(f"up_blocks.{level}.attentions.") for each in modules)
            return f"output_blocks.{row + blocks}.{2 if after else 1}.conv"
        place = f"input_blocks.{1 + row + number}" if way == "down_blocks" else f"output_blocks.{row + number}"
        return f"{place}.0.{_RESIDUAL.get(rest, rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    if middle := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, number, rest = middle[1], int(middle[2]), middle[3]
        return (
            f"middle_block.{2 * number}.{_RESIDUAL.get(rest, rest)}" if kind == "resnets" else f"middle_block.1.{rest}"
        )
    return None
