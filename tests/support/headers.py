"""Files that hold a safetensors header and zeros: enough to be told from others, and small."""

import json
import struct
from pathlib import Path

UNET = "model.diffusion_model."
CONTEXT = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD15 = {
    UNET + "input_blocks.0.0.weight": [32, 4, 3, 3],
    CONTEXT: [32, 768],
    "first_stage_model.decoder.conv_in.weight": [8, 4, 3, 3],
    "cond_stage_model.transformer.text_model.embeddings.position_ids": [1, 77],
}


def write(path: Path, shapes: dict[str, list[int]], *, cut: int = 0, fill: int = 0) -> Path:
    """Write tensors of bytes that are all `fill`, without the last `cut` bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 1
        for n in shape:
            size *= n
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    content = struct.pack("<Q", len(raw)) + raw + bytes([fill]) * end
    path.write_bytes(content[: len(content) - cut])
    return path
