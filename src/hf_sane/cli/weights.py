"""Options of all verbs that read networks: which weights of a file, folder or repository are meant."""

from typing import Annotated

import typer

Subfolder = Annotated[str | None, typer.Option(help="Folder with the weights, in a folder or repository.")]
Variant = Annotated[str | None, typer.Option(help="Which precision: fp16 reads model.fp16.safetensors.")]
Key = Annotated[str | None, typer.Option(help="Which state dict of a training checkpoint, such as model_ema.")]
