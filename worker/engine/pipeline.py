"""Pipeline: what the runner hangs on one set of resident modules, whichever checkpoint's weights are in it."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.conditioning import Conditions, PromptEncoder
from worker.diffusion.lora import Adapters
from worker.diffusion.preview import Previewer
from worker.engine.draft import PassDraft
from worker.engine.unet_batch import UNetBatch
from worker.residency.modules import ResidentModules
from worker.residency.weights import CheckpointWeights

PREVIEWERS = 16  # each a map of a few numbers, fitted in a moment

Compile = Callable[[Any], CompiledUNet | None]


class Pipeline:
    """Encodes prompts, calls the UNet and previews latents by one set of modules. For the engine's thread only."""

    def __init__(
        self,
        modules: ResidentModules,
        preview: Callable[[Any], Previewer],
        strict_samples: int | None,
        compile_: Compile,
    ) -> None:
        loaded = modules.loaded
        compiled = compile_(loaded.unet)
        if compiled is not None:
            weakref.finalize(modules, compiled.close).atexit = False
        self.unet_batch = UNetBatch(loaded, strict_samples, compiled=compiled)
        self._prompts = PromptEncoder(loaded)
        self._text_adapters = Adapters(loaded.text_encoder, "text_encoder")
        self._preview = preview
        self._vae = loaded.vae
        self._previewers: OrderedDict[str, Previewer] = OrderedDict()

    def conditions(self, present: PassDraft) -> Conditions:
        """Encode the prompts of a pass whose checkpoint is resident."""
        weights = present.weights.parts["text_encoder"].digest
        with self._text_adapters.applied([(1, present.text_mix)]):
            return self._prompts.encode(present.script, present.text_mix.key if present.text_mix else None, weights)

    def previewer(self, weights: CheckpointWeights) -> Previewer:
        """Return the previewer for the latents of resident weights; one for a VAE that is new waits for the device."""
        digest = weights.parts["vae"].digest
        if digest not in self._previewers:
            self._previewers[digest] = self._preview(self._vae)
            while len(self._previewers) > PREVIEWERS:
                self._previewers.popitem(last=False)
        return self._previewers[digest]
