"""Marked checkpoints: small real files, each of whose parts holds a mark that pictures made with it show. No torch."""

import random
from io import BytesIO

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

MARK_BYTES = 16  # of each part
# Tensors by which the farm knows a checkpoint, in the order in which a picture shows the marks in them.
PARTS = {
    "text_encoder": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "unet": "model.diffusion_model.input_blocks.0.0.weight",
    "vae": "first_stage_model.decoder.conv_in.weight",
}
CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
NAMES = tuple(f"marked-{letter}" for letter in "abcdef")


def made(rng: random.Random) -> bytes:
    """Return the bytes of a checkpoint with marks of its own."""
    marks = {name: np.frombuffer(rng.randbytes(MARK_BYTES), np.uint8) for name in PARTS.values()}
    marks[PARTS["unet"]] = marks[PARTS["unet"]].reshape(4, 4, 1, 1)
    return save({**marks, CONTEXT: np.zeros((1, 768), np.uint8)})


def flipped(data: bytes, rng: random.Random) -> tuple[int, bytes]:
    """Return where in a file a bit of a mark is flipped, and the byte that stands there then."""
    marks = load(data)
    mark = marks[rng.choice(list(PARTS.values()))].tobytes()
    at = data.index(mark) + rng.randrange(MARK_BYTES)
    return at, bytes([data[at] ^ 1 << rng.randrange(8)])


def mark(data: bytes) -> str:
    """Return the marks in a file, in hexadecimal."""
    tensors = load(data)
    return b"".join(tensors[name].tobytes() for name in PARTS.values()).hex()


def shown(png: bytes) -> tuple[str, str]:
    """Return the marks that a picture shows, and what its text tells of its checkpoint: the begin of the file's SHA-256."""
    picture = Image.open(BytesIO(png))
    told = str(picture.info["parameters"]).partition("Model hash: ")[2].partition(",")[0]
    return np.asarray(picture).tobytes()[: len(PARTS) * MARK_BYTES].hex(), told
