"""VAE decoding of latents to pixels, whole or tiled, and the VAEs that requests may name instead of the checkpoint's own.

Images are decoded one at a time: a batch would be the first to exceed memory, and an image's bits must not depend on neighbours.
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import structlog
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import BadWeights, NotANumber, OutOfMemory
from shared.files.weights import Shelf, WeightsFile
from worker.diffusion import division, out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.latent_space import LatentSpace
from worker.diffusion.noise import PIXELS_PER_LATENT
from worker.diffusion.transfer import Readback

DIFFUSERS_PREFIX = "decoder.mid_block."
# What diffusers used to call the parts of an attention; its loader still reads such files, and so must we.
RENAMED = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
LOADED = 2  # 0.17 GB each in half precision
SPACES = 32  # 50 kB each
TILED_LATENT_PIXELS = 128 * 128  # 1024 px square: beyond, a whole decode wants over 4 GB
SMALL_DEVICE_LATENT_PIXELS = 64 * 64
SMALL_DEVICE_BYTES = 8 * 2**30
TILES = (64, 32)  # latents square: a whole decode of 512 px, and a quarter of that for memory that is nearly full

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PixelReadback:
    """Asynchronous copy of pixels to the host: an image (H, W, 3) uint8, and a flag, false if a number was not finite."""

    readback: Readback
    retry: "Callable[[], PixelReadback] | None"

    @property
    def is_ready(self) -> bool:
        """Whether `pixels` would return without waiting for the device."""
        return self.readback.is_ready

    def wait(self) -> None:
        """Wait for the device."""
        self.readback.wait()

    def pixels(self) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8. Where a number is not finite, decode once more in fp32, then raise `NotANumber`."""
        image, finite = self.readback.tensors()
        if bool(finite):
            array: NDArray[np.uint8] = image.numpy()
            # Pinned memory is scarce and goes back with its tensor.
            return array.copy() if image.is_pinned() else array
        if self.retry is None:
            raise NotANumber
        with out_of_memory.translated():
            return self.retry().pixels()


@torch.inference_mode()
def begin_decode(vae: Any, x: Tensor) -> PixelReadback:
    """Launch the decoding of latents (1, 4, height/8, width/8) float32; on a GPU, without waiting."""
    is_full = vae.dtype == torch.float32
    return _launched(vae, x, retry=None if is_full else lambda: begin_decode(in_full_precision(vae), x))


def in_full_precision(vae: Any) -> Any:
    """Return a copy in fp32, for numbers that overflow in half precision. Not to be kept: it takes twice the memory."""
    log.warning("vae.overflowed", dtype=str(vae.dtype))
    return copy.deepcopy(vae).float()


def needs_tiling(latent_height: int, latent_width: int, device_bytes: int | None) -> bool:
    """Whether a whole decode takes too much memory: of very large pictures, and of large ones on a small GPU."""
    is_small = device_bytes is not None and device_bytes < SMALL_DEVICE_BYTES
    return latent_height * latent_width > (SMALL_DEVICE_LATENT_PIXELS if is_small else TILED_LATENT_PIXELS)


def within_memory(vae: Any, latent_height: int, latent_width: int, compute: Callable[[], T]) -> T:
    """Call `compute`, which encodes or decodes a picture; where memory runs out, call it again with smaller tiles.

    Raises torch's `OutOfMemoryError` where the smallest tiles do not fit either.
    """
    tiles = _tiles(latent_height, latent_width, vae.device)
    for tile in tiles[:-1]:
        try:
            with tiling(vae, tile):
                return compute()
        except RuntimeError as error:
            if not out_of_memory.is_shortage(error):
                raise
            out_of_memory.release(error)
        log.warning("vae.out_of_memory", latent_height=latent_height, latent_width=latent_width, tile=tile)
    with tiling(vae, tiles[-1]):
        return compute()


def _tiles(latent_height: int, latent_width: int, device: torch.device) -> list[int | None]:
    """Return the tile sides to try, in latents, largest first; None stands for the whole picture."""
    device_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    tiles = [tile for tile in TILES if tile < max(latent_height, latent_width)]
    return [*tiles] if needs_tiling(latent_height, latent_width, device_bytes) else [None, *tiles]


@contextmanager
def tiling(vae: Any, tile: int | None) -> Iterator[None]:
    """Within the block, the VAE encodes and decodes in tiles of `tile` by `tile` latents; whole if None.

    Diffusers keeps the setting in the VAE: left on, it would change the bits of the next picture.
    """
    if tile is None:
        yield
        return
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, tile * PIXELS_PER_LATENT
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def load_vae(file: WeightsFile, checkpoint: LoadedCheckpoint, space: LatentSpace) -> Any:
    """Load a VAE of the checkpoint's architecture and latent space, in the original layout or diffusers'.

    Raises `BadWeights`, naming the file, and `OutOfMemory` where the device is too full.
    """
    try:
        # Read, not mapped: a mapped file that is overwritten changes under the engine, and one that is cut ends the process.
        raw = file.path.read_bytes()
        _refuse_sdxl(file, raw)
        weights = safetensors.torch.load(raw)
        vae = AutoencoderKL.from_config(checkpoint.vae.config)
        vae.load_state_dict(_renamed(weights, vae.config))
        loaded = vae.to(checkpoint.device, checkpoint.dtype).eval().requires_grad_(False)
        _refuse_other_latents(loaded, space)
        division.leave_out(loaded)
    except Exception as error:
        if out_of_memory.is_shortage(error):
            raise OutOfMemory(f"The VAE {file.name} does not fit into the memory of {checkpoint.device}.") from error
        reason = " ".join(str(error).split())[:200]
        raise BadWeights(f"{file.path}: cannot be loaded as a VAE of this checkpoint ({reason}).") from error
    return loaded


@dataclass(frozen=True, slots=True)
class OwnVae:
    """A checkpoint's own VAE: what tells its weights and its modules from others', and a copy that nobody else uses."""

    digest: str
    architecture: str
    copy: Callable[[], Any]


class VaeShelf:
    """Cache over the VAEs of a folder: the `LOADED` last used stay loaded. Thread-safe.

    A VAE is compared with that of each checkpoint whose latents it is to show.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._accepted: set[tuple[WeightsFile, str]] = set()
        self._spaces: OrderedDict[str, LatentSpace] = OrderedDict()
        self._loaded: OrderedDict[tuple[WeightsFile, str], Any] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str, checkpoint: LoadedCheckpoint, own: OwnVae) -> Any:
        """Return a VAE by name, loaded on this thread if need be.

        Raises `WeightsMissing`, `BadWeights`, `OutOfMemory` or `StorageUnavailable`.
        """
        file = self._shelf.find(name)
        key = file, own.architecture
        with self._lock:
            if key not in self._loaded or (file, own.digest) not in self._accepted:
                # Anew, too, for another checkpoint's latents: it is rare, and one that shows them wrong must not stay.
                self._loaded[key] = load_vae(self._shelf.fetched(file), checkpoint, self._space(own))
                self._accepted.add((file, own.digest))
            self._loaded.move_to_end(key)
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _space(self, own: OwnVae) -> LatentSpace:
        if own.digest not in self._spaces:
            self._spaces[own.digest] = LatentSpace.of(own.copy())
            while len(self._spaces) > SPACES:
                self._spaces.popitem(last=False)
        return self._spaces[own.digest]


def _launched(vae: Any, x: Tensor, retry: Callable[[], PixelReadback] | None) -> PixelReadback:
    latents = (x / vae.config.scaling_factor).to(vae.dtype)
    image = within_memory(vae, x.shape[2], x.shape[3], lambda: vae.decode(latents, return_dict=False)[0][0].float())
    return to_host(image, retry)


def to_host(image: Tensor, retry: Callable[[], PixelReadback] | None) -> PixelReadback:
    """Start to copy an image (3, height, width) float32 of -1 … 1 to the host as uint8; `retry` renders it anew if not finite."""
    pixels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return PixelReadback(Readback(pixels, torch.isfinite(image).all()), retry)


def _refuse_sdxl(file: WeightsFile, raw: bytes) -> None:
    """Refuse a file whose name or metadata says SDXL: its tensors have the same names and shapes but mean other latents."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    architecture = str((header.get("__metadata__") or {}).get("modelspec.architecture", ""))
    if "sdxl" in file.name.casefold() or architecture.startswith("stable-diffusion-xl"):
        raise BadWeights("it was made for SDXL")


def _refuse_other_latents(vae: Any, space: LatentSpace) -> None:
    if not space.is_read_by(vae):
        raise BadWeights("it shows this checkpoint's latents as something else; it was made for others, perhaps SDXL's")


def _renamed(weights: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
    """Rename the tensors of any layout to today's names in diffusers."""
    if not any(name.startswith(DIFFUSERS_PREFIX) for name in weights):
        converted: Mapping[str, Tensor] = convert_ldm_vae_checkpoint(weights, config)
        return converted
    return {_name_now(name): tensor for name, tensor in weights.items()}


def _name_now(name: str) -> str:
    for before, now in RENAMED:
        name = name.replace(before, now)
    return name
