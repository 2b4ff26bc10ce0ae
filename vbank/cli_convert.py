"""`vbank convert`: an adapter's files in another form, without the model's weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from vbank.suggestions import unknown

KINDS = ("vbank", "peft", "lora")
EPILOG = (
    "\b\nExample:\n  vbank convert adapter/ peft/ --to peft --compact"
    "\n  vbank convert adapter/ lora/ --to lora"
    "\n  vbank convert peft/ adapter/ --to vbank --form resumable --base roberta-base"
)


def convert(
    source: Annotated[Path, typer.Argument(help="Folder that vbank.save or PEFT wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="vbank, peft (the same method), or lora (a plain LoRA, for any loader).")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, folder or Hub id; its configuration alone is read. Needed for PEFT's VeRA."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="With --to peft: leave out what can be made anew.")
    ] = False,
    form: Annotated[str, typer.Option(help="With --to vbank: compact or resumable.")] = "compact",
) -> None:
    """Write an adapter in another form: vbank's, PEFT's, or a plain LoRA. Reads no weight of the base model."""
    from vbank import interop
    from vbank.checkpoint import save

    if to not in KINDS:
        raise ValueError(unknown("--to", to, KINDS))
    if compact and to != "peft":
        raise ValueError("--compact does nothing without --to peft; leave it out")
    if form != "compact" and to != "vbank":
        raise ValueError("--form does nothing without --to vbank; leave it out")
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the source; give another folder to write")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # logits that a compact file lacks are drawn: the same at every call
        model = opened(source, base, trainable=form == "resumable")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if to == "vbank":
            save(model, out, form=form)
        else:
            interop.to_peft(model, out, as_lora=to == "lora", compact=compact, base=base)
    for warning in said:
        print(f"note: {warning.message}")
    files = sorted(file for file in out.iterdir() if file.is_file())
    print(f"{out}: " + ", ".join(f"{file.name} {file.stat().st_size:,} bytes" for file in files))


def opened(source: Path, base: str | None, trainable: bool) -> nn.Module:
    """A hollow model with the adapter of a folder.

    Raises:
        ValueError: the folder holds no adapter or two, or one that cannot be read without `base`.
    """
    from vbank import hollow, interop, peft_files, peft_formats, stored
    from vbank.checkpoint import load

    if not source.is_dir():
        raise ValueError(f"{source} is no folder; give one that vbank.save or PEFT wrote")
    ours, theirs = ((source / name).exists() for name in (stored.DESCRIPTION, peft_files.CONFIG_FILE))
    if ours == theirs:
        both = "both" if ours else "neither"
        raise ValueError(f"{source} holds {both} of {stored.DESCRIPTION} (vbank) and {peft_files.CONFIG_FILE} (PEFT)")
    own = stored.read(source) if ours else None
    found = peft_files.read(source) if theirs else None
    layers = [site.name for site in own.sites] if own else list(found.layers) if found else []
    base_model = None if base is None else hollow.base_model(base, layers[0])
    if own:
        model = hollow.hollow(own.sites, own.head, base_model, own.train)
        load(model, source, trainable=trainable)
        return model
    assert found is not None
    if found.kind == "VERA" and base_model is None:
        raise ValueError(f"{source}: PEFT's VeRA files do not say how wide the layers are; name the model with --base")
    content = peft_formats.understand(found, lambda layer: hollow.size(base_model, layer))
    model = hollow.hollow(content.sites, found.head, base_model)
    interop.from_peft(model, source, trainable=trainable)
    return model
