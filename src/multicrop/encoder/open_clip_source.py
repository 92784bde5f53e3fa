"""Where configuration, weights and pixel facts of an open_clip model come from: the hub, a folder, or a file of a named architecture."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multicrop.files.hub import hub_answers, local_files_only

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
FILES = (CONFIG, *WEIGHTS, "tokenizer*", "special_tokens_map.json", "*.model", "vocab*", "merges.txt")
FACTS = ("mean", "std", "interpolation", "resize_mode", "fill_color")  # of pixels
SOURCES = (
    "model.name=hf-hub:OWNER/NAME, model.name=FOLDER, or model.name=ARCHITECTURE model.checkpoint=FILE.safetensors model.tag=TAG "
    "with the published tag whose pixels and activation the weights have"
)

PICKLE = (
    ". A pickle is not opened, as it may run code: where you trust it, convert it once, "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'open_clip_model.safetensors')"
)


@dataclass(frozen=True)
class Source:
    """An open_clip model on this machine.

    Attributes:
        label: The name of the model in records and messages.
        model: What open_clip's factory calls it: an architecture, or ``local-dir:`` and a folder.
        config: Its architecture (open_clip's ``model_cfg``).
        weights: A safetensors file.
        pixels: What is known of its pixels: ``mean``, ``std``, and where stated ``interpolation``, ``resize_mode`` and ``fill_color``.
    """

    label: str
    model: str
    config: dict[str, Any]
    weights: Path
    pixels: dict[str, Any]


def open_clip_source(name: str, checkpoint: str | None, tag: str | None, revision: str | None) -> Source:
    """Find a model; raises ValueError with advice where a part of it is missing, or only there as a pickle."""
    if checkpoint is not None:
        return _of_file(name, Path(checkpoint).expanduser(), tag)
    if name.startswith(HUB):
        return _of_folder(_downloaded(name.removeprefix(HUB), revision), name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _of_folder(folder, folder.name)
    raise ValueError(f"model.name={name} is no folder, and an architecture needs its weights. Choose {SOURCES}{_near(name)}")


def described(config: dict[str, Any], text_model: "PreTrainedConfig | None") -> dict[str, Any]:
    """The architecture; that of a HuggingFace text tower in full, in place of the name or folder that it was read from."""
    if text_model is None:
        return config
    text = {name: value for name, value in config["text_cfg"].items() if name != "hf_model_name"}
    return config | {"text_cfg": text, "text_model": text_model.to_dict()}


def _of_file(name: str, file: Path, tag: str | None) -> Source:
    import open_clip

    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise ValueError(f"model.name is an architecture of open_clip where model.checkpoint is set, got {name!r}{_near(name)}")
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"model.checkpoint is a file FILE.safetensors, got {file}{PICKLE}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    facts = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if not facts:
        known = f"; {name} has {', '.join(tags)}" if tags else f"; {name} has none: put the weights in a folder with a {CONFIG}"
        raise ValueError(
            "model.checkpoint needs model.tag, the published tag that says how its pixels are made (open_clip would take those of OpenAI's "
            f"CLIP, silently), got {tag!r}{known}"
        )
    quick, wanted = bool(config.get("quick_gelu")), bool(facts.get("quick_gelu"))
    if quick != wanted and "timm_model_name" not in config["vision_cfg"]:
        other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
        raise ValueError(
            f"the tag {tag} was trained with {'QuickGELU' if wanted else 'GELU'}, and the architecture {name} has the other; "
            f"choose model.name={other}"
        )
    return Source(f"{name} {tag}", name, config, file, {key: facts[key] for key in FACTS if key in facts})


def _of_folder(folder: Path, label: str) -> Source:
    try:
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{label} has no readable {CONFIG} ({error}); choose {SOURCES}") from error
    config, pixels = stored.get("model_cfg"), stored.get("preprocess_cfg") or {}
    if not config or not {"mean", "std"} <= pixels.keys():
        raise ValueError(
            f"{CONFIG} of {label} needs model_cfg, and preprocess_cfg with mean and std (and interpolation and resize_mode, where they are "
            "not bicubic and shortest): open_clip would take the pixels of OpenAI's CLIP, silently"
        )
    named = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    found = named or sorted(folder.glob("*.safetensors"))
    if len(found) != 1 and not named:
        files = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".safetensors"))
        raise ValueError(f"{label} needs its weights in {WEIGHTS[0]}, found {', '.join(files) or 'none'}{PICKLE}")
    return Source(label, f"local-dir:{folder}", config, found[0], {key: pixels[key] for key in FACTS if key in pixels})


def _downloaded(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        local = local_files_only(repository)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES), local_files_only=local))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if hub_answers() else "the hub does not answer, and no download of it is on this machine"
        raise ValueError(
            f"the model {HUB}{repository} cannot be downloaded ({reason}). Check the name and the network, or {SOURCES}"
        ) from error


def _near(name: str) -> str:
    import open_clip

    near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.6)
    return f"; architectures of similar names: {', '.join(near)}" if near else ""
