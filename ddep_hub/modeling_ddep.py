# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""DDeP models: a timm encoder, a U-Net decoder, and a head for denoising or segmentation."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_ddep import DDePConfig
from .decoder import DDePDecoder
from .denoising import (
    CORRUPTIONS,
    broadcast_like,
    check_noise,
    feature_target,
    mean_squared_error,
    noise_scale,
    sample_sigma,
)
from .encoders import (
    build_encoder,
    extract_features,
    feature_maps,
    fixed_image_size,
    has_batch_norm_in_training,
    is_hybrid,
)
from .folding import example_images, fold_batch_norms
from .modeling_base_ddep import DDePPreTrainedModel
from .resampling import pad_to_multiple, padded_size
from .segmentation import segmentation_loss


logger = logging.get_logger(__name__)

# Number of the encoder's deepest features that a decoder predicts with `corruption="downsampled"`.
NUM_TARGETS = 2


@dataclass
class DDePForPreTrainingOutput(ModelOutput):
    """Output of [`DDePForPreTraining`].

    Attributes:
        loss: mean squared error of the prediction, a scalar; with `corruption="masked"`, that of the masked pixels,
            averaged over the images.
        prediction: the predicted noise or image, shape `(batch, C, H, W)`; with `corruption="downsampled"`, the
            predicted features `(batch, sum of their channels, rows, columns)` on the grid of the finest.
        target: the target of the prediction, same shape.
        noisy_pixel_values: the corrupted images, shape `(batch, C, H, W)`; downsampled ones, which are padded first,
            have `(batch, C, H' / 2, W' / 2)`.
        sigma: the noise level of each example, shape `(batch,)`; not with `corruption="downsampled"`.
        mask: which pixels were masked, bool of shape `(batch, 1, H, W)`; only with `corruption="masked"`.
        hidden_states: features of the encoder, finest first, then of the decoder, coarsest first.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    target: torch.Tensor | None = None
    noisy_pixel_values: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def _check_images(pixel_values: torch.Tensor, channels: int) -> None:
    """Raises an error for anything but a batch of normalised images with this number of channels."""
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"pixel_values: expected a tensor, got {type(pixel_values).__name__}.")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values: expected floats (batch, {channels}, height, width), got {pixel_values.dtype} "
            f"{tuple(pixel_values.shape)}. DDePImageProcessor makes them from images."
        )


class DDePModel(DDePPreTrainedModel):
    """Encoder and decoder without a head.

    Example:

    ```python
    >>> import torch
    >>> from ddep_hub import DDePConfig, DDePModel

    >>> model = DDePModel(DDePConfig(encoder_name="tf_efficientnet_lite0")).eval()
    >>> model(torch.zeros(1, 3, 96, 64)).last_hidden_state.shape
    torch.Size([1, 16, 96, 64])
    ```
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^classifier\.", r"^noise_head\."]

    def __init__(self, config: DDePConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        # The encoder may have been frozen in another model's pretraining.
        self.encoder = (build_encoder(config) if encoder is None else encoder).to(torch.get_default_dtype())
        self.encoder.train(self.training).requires_grad_(True)
        for module in self.encoder.modules():
            module._is_ddep_encoder = True
        # A new encoder is initialised in `initialize_weights`, where transformers expects random initialisation.
        self.encoder._ddep_initialized = encoder is not None and next(encoder.parameters()).device.type != "meta"
        # In a tuple, so that it is not registered as a submodule, saved or loaded.
        self._folded_encoder: tuple[nn.Module, ...] = ()
        self.decoder = DDePDecoder(config, feature_maps(self.encoder))
        self.stride = self.decoder.strides[-1]
        if not is_hybrid(self.encoder):  # any layer inside may add the outputs of two others
            self._no_split_modules = [type(self.encoder).__name__, *self._no_split_modules]  # type: ignore[misc]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        frozen_encoder: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Runs encoder and decoder.

        Args:
            pixel_values: normalised images of shape `(batch, num_channels, H, W)`. They are padded internally to
                multiples of the deepest stride by repeating the last row and column; for encoders with a fixed image
                size (BEiT, MaxViT, ...) they are resampled to it.
            output_hidden_states: also return the features of the encoder, finest first, and of the decoder.
            frozen_encoder: run the encoder without gradients, so that it stores no activations.
            **kwargs: ignored, as in other vision models.

        Returns:
            `last_hidden_state` of shape `(batch, C, H' / s, W' / s)`: H' and W' are the padded sides, and s is the
            stride the decoder leaves to upsample (1 with the default sizes). `hidden_states` if requested.

        Raises:
            ValueError: the number of channels is not `num_channels`, the images are integers, or the training batch is
                so small that a BatchNorm would see a single value per channel.
        """
        _check_images(pixel_values, self.config.num_channels)
        batch, _, height, width = pixel_values.shape
        if self.training and batch == 1 and max(height, width) <= self.stride:
            if has_batch_norm_in_training(self):
                raise ValueError(
                    f"With one {height}x{width} image per batch, BatchNorm has a single value per channel at stride "
                    f'{self.stride}. Use a larger crop or batch, or decoder_norm="group" (and an encoder without '
                    "BatchNorm, or frozen)."
                )
        pixel_values = self._to_dtype(pixel_values)
        features, covered_size = self.encode(pixel_values, frozen_encoder)
        decoded = self.decoder(features, pixel_values, covered_size)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutput(
            last_hidden_state=decoded[-1], hidden_states=(*features, *decoded) if output_hidden_states else None
        )

    def encode(self, pixel_values: torch.Tensor, frozen_encoder: bool) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """Runs only the encoder, see [`extract_features`]; a frozen one without gradients, and folded if it was."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_encoder):
            encoder = self._folded_encoder[0] if frozen_encoder and self._folded_encoder else self.encoder
            return extract_features(encoder, self._to_dtype(pixel_values))

    def _to_dtype(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # Replicas of nn.DataParallel, which Trainer uses on several GPUs, have no parameters.
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), pixel_values.dtype)
        return pixel_values.to(dtype)

    def fold_encoder(self) -> None:
        """Speeds up passes with `frozen_encoder` by folding the encoder's BatchNorms into its convolutions.

        They then run a copy of the encoder, see [`fold_batch_norms`], which is not in the `state_dict`. Call this once
        the model has its weights and device, and again after either changes.
        """
        images = example_images(self.config.num_channels, self.device)

        def encode(encoder: nn.Module) -> list[torch.Tensor]:
            return extract_features(encoder, images)[0]

        training = self.encoder.training
        self._folded_encoder = (fold_batch_norms(self.encoder.eval(), encode),)
        self.encoder.train(training)

    def to_image_size(self, prediction: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Upsamples a prediction for the padded image to full resolution, and crops off the padding.

        Args:
            prediction: computed from `last_hidden_state`, shape `(batch, K, H' / s, W' / s)`.
            height: H of the images.
            width: W of the images.

        Returns:
            Tensor of shape `(batch, K, H, W)`.
        """
        size = padded_size(height, self.stride), padded_size(width, self.stride)
        if prediction.shape[-2:] != size:
            prediction = F.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
        if torch.compiler.is_exporting():  # a slice would compare the padded sides, which may be symbolic
            rows, columns = (torch.arange(side, device=prediction.device) for side in (height, width))
            return prediction[:, :, rows][..., columns]
        return prediction[..., :height, :width]


class DDePForPreTraining(DDePPreTrainedModel):
    """Predicts the noise added to its input, or another target set by `config.corruption`.

    With `freeze_encoder`, only the decoder is trained (DDeP): the encoder stays in eval mode even after `.train()`,
    runs without gradients, and stays bit-identical, including its running statistics.

    Example:

    ```python
    >>> import torch
    >>> from ddep_hub import DDePConfig, DDePForPreTraining

    >>> model = DDePForPreTraining(DDePConfig(encoder_name="tf_efficientnet_lite0"))
    >>> model(torch.randn(2, 3, 64, 64)).loss.backward()
    ```
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^classifier\."]

    def __init__(self, config: DDePConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        config.validate_architecture()  # `from_pretrained` sets the fields one by one
        self.ddep = DDePModel(config, encoder)
        channels = self.ddep.decoder.out_channels + config.num_channels * config.image_skip
        if config.prediction_type == "features":
            if fixed_image_size(config) is not None:
                raise ValueError(
                    f'corruption="{config.corruption}" needs an encoder that accepts any image size, but '
                    f"{config.encoder_name} accepts only one. Choose another encoder or `corruption` (in fine-tuning, "
                    "`pretraining_corruption`)."
                )
            self.noise_head = nn.Conv2d(channels, sum(feature_maps(self.ddep.encoder).channels[-NUM_TARGETS:]), 1)
        else:
            self.noise_head = nn.Conv2d(channels, config.num_channels, kernel_size=3, padding=1)
        self._has_frozen_encoder = config.freeze_encoder
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen encoder stays in eval mode and requires no gradients.

        Once `config.freeze_encoder` is set to `False`, the encoder requires gradients again: DDeP first, then DeP.
        """
        super().train(mode)
        if self.config.freeze_encoder:
            # Here, not just in __init__: loading replaces the parameters and ends with .eval().
            self.ddep.encoder.eval().requires_grad_(False)
        elif self._has_frozen_encoder:
            self.config.validate_architecture()  # to predict features, it has to be frozen
            self.ddep.encoder.requires_grad_(True)
        self._has_frozen_encoder = self.config.freeze_encoder
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | float | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> DDePForPreTrainingOutput:
        """Corrupts images and predicts the noise, the clean images or their features.

        Args:
            pixel_values: clean, normalised images of shape `(batch, C, H, W)`.
            noise: standard normal noise of the same shape; drawn if `None`. With `corruption="masked"` it selects the
                patches to mask; with `"downsampled"` it is not used.
            sigma: noise level in units of `pixel_values`, one number or one per example, shape `(batch,)`; by default
                the configuration's, drawn per example if that is a range.
            generator: random generator for the noise and its level.
            output_hidden_states: also return the features.
            return_loss: whether to compute the loss; tells `transformers.Trainer` that it needs no labels.
            **kwargs: ignored, as in other vision models.

        Returns:
            See [`DDePForPreTrainingOutput`].

        Raises:
            ValueError: `pixel_values`, `noise` or `sigma` has the wrong shape or is out of range. The values of a
                tensor `sigma` are not checked, because that would synchronise its device.
        """
        _check_images(pixel_values, self.config.num_channels)
        check_noise(pixel_values, noise, sigma)
        if self.config.freeze_encoder and self.ddep.encoder.training:
            self.ddep.encoder.eval()  # in case `.train()` was called on a submodule
        corruption, predicts_features = CORRUPTIONS[self.config.corruption], self.config.prediction_type == "features"
        batch, _, height, width = pixel_values.shape
        if predicts_features:  # so that neither the images nor the corrupted ones are padded later
            pixel_values = pad_to_multiple(pixel_values, corruption.size_factor * self.ddep.stride)
        if not corruption.needs_noise:
            noise = sigma = None
        else:
            if noise is None:
                generator_device = generator.device if generator is not None else pixel_values.device
                noise = torch.randn(pixel_values.shape, generator=generator, device=generator_device).to(pixel_values)
            if sigma is None:
                sigma = sample_sigma(self.config.sigma_range, batch, generator=generator, device=pixel_values.device)
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=pixel_values.device).expand(batch)
        noisy, mask = corruption.apply(pixel_values, noise, sigma, self.config)
        if predicts_features:
            target = self.feature_target(pixel_values)
        else:
            target = noise if self.config.prediction_type == "epsilon" else pixel_values
        outputs = self.ddep(
            noisy,
            output_hidden_states=output_hidden_states,
            frozen_encoder=self.config.freeze_encoder,
            return_dict=True,
        )
        hidden_state = outputs.last_hidden_state
        if predicts_features:
            size = target.shape[-2:]
            if hidden_state.shape[-1] >= size[1]:
                hidden_state = F.avg_pool2d(hidden_state, hidden_state.shape[-1] // size[1])
            else:  # a decoder with few blocks
                hidden_state = F.interpolate(hidden_state, size=size, mode="bilinear")
            prediction = self.noise_head(hidden_state)
        elif self.config.image_skip:
            # In units of the noise: otherwise a head with small initial weights would take long to reach the right
            # scale.
            scaled_noisy = noisy / broadcast_like(noise_scale(sigma, self.config.corruption), noisy)
            hidden_state = self.ddep.to_image_size(hidden_state, height, width)
            prediction = self.noise_head(torch.cat([hidden_state, scaled_noisy.to(hidden_state.dtype)], dim=1))
        else:
            prediction = self.ddep.to_image_size(self.noise_head(hidden_state), height, width)
        return DDePForPreTrainingOutput(
            loss=mean_squared_error(prediction.float(), target.float(), mask) if return_loss else None,
            prediction=prediction,
            target=target,
            noisy_pixel_values=noisy,
            sigma=sigma,
            mask=mask,
            hidden_states=outputs.hidden_states,
        )

    def feature_target(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The features of images to predict with `corruption="downsampled"`, see [`feature_target`].

        `pixel_values` are `(batch, C, H, W)`, with sides that are multiples of the decoder's deepest stride.
        """
        features, covered_size = self.ddep.encode(pixel_values, frozen_encoder=True)
        features = features[-NUM_TARGETS:]
        # The stride of the finest of these features, or close to it: patches may have 14 pixels.
        stride = min(self.ddep.stride, 2 ** round(math.log2(covered_size[0] / features[0].shape[-2])))
        size = pixel_values.shape[-2] // stride, pixel_values.shape[-1] // stride
        return feature_target(features, covered_size, stride, size)


class DDePForSemanticSegmentation(DDePPreTrainedModel):
    """Labels each pixel: encoder, decoder, and a 3x3 convolution to `num_labels` classes at full resolution.

    To replace the loss, set `model.loss_function` to a function of `logits`, `labels` and the keyword `ignore_index`.
    As in transformers, an `nn.Module` is ignored: set its `forward`. The loss is not saved with the model.

    Example:

    ```python
    >>> import torch
    >>> from ddep_hub import DDePConfig, DDePForSemanticSegmentation

    >>> model = DDePForSemanticSegmentation(DDePConfig(encoder_name="tf_efficientnet_lite0", num_labels=19)).eval()
    >>> model(torch.zeros(1, 3, 65, 100)).logits.shape
    torch.Size([1, 19, 65, 100])
    ```
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^noise_head\."]

    def __init__(self, config: DDePConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        self.ddep = DDePModel(config, encoder)
        self.classifier = nn.Conv2d(self.ddep.decoder.out_channels, config.num_labels, kernel_size=3, padding=1)
        self.loss_function = segmentation_loss
        if 0 < config.semantic_loss_ignore_index < max(2, config.num_labels):  # 0 may be intended: a background class
            logger.warning(
                f"semantic_loss_ignore_index: {config.semantic_loss_ignore_index} is the id of a class, which would "
                "not be learned. Set it to -1, or to an id above those of the classes."
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """Segments images.

        Args:
            pixel_values: normalised images of shape `(batch, num_channels, H, W)`.
            labels: class ids of shape `(batch, H, W)`, of any integer type; `config.semantic_loss_ignore_index` is
                ignored. With `num_labels=1` they are 0 (background) and 1.
            output_hidden_states: also return the features.
            **kwargs: ignored, as in other vision models.

        Returns:
            `logits` of shape `(batch, num_labels, H, W)`; with `labels`, also `loss`, the mean cross-entropy over the
            pixels that are not ignored (0 if all are). A single label is segmented against the background with binary
            cross-entropy: a pixel belongs to the label if its logit is above 0.
        """
        outputs = self.ddep(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.ddep.to_image_size(self.classifier(outputs.last_hidden_state), *pixel_values.shape[-2:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = [
    "DDePForPreTraining",
    "DDePForPreTrainingOutput",
    "DDePForSemanticSegmentation",
    "DDePModel",
    "DDePPreTrainedModel",
]
