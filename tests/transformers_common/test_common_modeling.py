"""transformers' own tests of models, on the three DDeP classes over three tiny encoders."""

import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common_release import import_common
from safetensors.torch import load_file, save_file
from tiny_models import ConvNeXtTester, DDePModelTester, ResNetTester
from torch import nn
from transformers.models.auto import modeling_auto

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePModel


common = import_common("test_modeling_common")


class DDePModelTests(common.ModelTesterMixin):
    """The common tests, and our own form of those that a segmentation U-Net cannot take as they are."""

    all_model_classes = (DDePModel, DDePForPreTraining, DDePForSemanticSegmentation)
    make_tester = DDePModelTester
    # timm's attention returns no weights.
    has_attentions = False
    # There are no token embeddings.
    test_resize_embeddings = False
    # The check of every parameter's initialisation is skipped without this, as for models of before 2023.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = self.make_tester()
        # The tests look classes up in these tables of names, to which registering a class does not add.
        for table, name in (
            (modeling_auto.MODEL_MAPPING_NAMES, "DDePModel"),
            (modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, "DDePForSemanticSegmentation"),
        ):
            patch = mock.patch.dict(table, {"ddep": name})
            patch.start()
            self.addCleanup(patch.stop)

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class is DDePForPreTraining:
            torch.manual_seed(0)
            inputs |= self.model_tester.pretraining_inputs()
        return inputs

    def check_training_gradient_checkpointing(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        # The test makes every parameter trainable and wants the first layer, an encoder's, to be checkpointed. Under
        # freeze_encoder=True the encoder stores no activations whatever its parameters say, hence DeP here.
        trainable = {**self.model_tester.config_kwargs, "freeze_encoder": False}
        with mock.patch.object(self.model_tester, "config_kwargs", trainable):
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def test_model_get_set_embeddings(self) -> None:
        # The common test wants an nn.Embedding; the input of an image model is embedded by a convolution.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_hidden_states_output(self) -> None:
        # The common test wants sequences `(length, dim)`, all of one shape; these are maps of two pyramids.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            by_argument = self._hidden_states(model_class, config, inputs, output_hidden_states=True)
            shapes = [tuple(state.shape) for state in by_argument]
            self.assertEqual(
                shapes, [(self.model_tester.batch_size, *shape) for shape in self.model_tester.hidden_state_shapes]
            )
            self.assertIsNone(self._hidden_states(model_class, config, inputs))
            configured = self.model_tester.get_config()
            configured.output_hidden_states = True
            by_config = self._hidden_states(model_class, configured, inputs)
            self.assertEqual([tuple(state.shape) for state in by_config], shapes)

    def _hidden_states(self, model_class: type, config: Any, inputs: dict[str, Any], **arguments: Any) -> Any:
        model = model_class(config).eval()
        with torch.no_grad():
            return model(**self._prepare_for_class(inputs, model_class), **arguments).hidden_states

    def test_missing_weights_raise(self) -> None:
        # The common test asks for the list of missing weights and gets it. Who does not ask is told by an error: only
        # a head may be missing.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                file = Path(folder, "model.safetensors")
                weights = load_file(file)
                self.assertEqual(set(weights), set(model.state_dict()))
                save_file({"tensor": torch.tensor([1, 2])}, file, metadata={"format": "pt"})
                with self.assertRaisesRegex(Exception, "encoder|decoder"):
                    model_class.from_pretrained(folder)
                prefix = "" if model_class is DDePModel else "ddep."
                lost = next(name for name in weights if name.startswith(f"{prefix}decoder.blocks."))
                save_file({k: v for k, v in weights.items() if k != lost}, file, metadata={"format": "pt"})
                with self.assertRaisesRegex(Exception, lost.replace(".", r"\.")):
                    model_class.from_pretrained(folder)


class HybridTest(DDePModelTests, unittest.TestCase):
    def test_bc_torch_dtype(self) -> None:
        # It prints each parameter 14 times into messages that only a failure shows; a shape is printed at once.
        with mock.patch.object(torch.Tensor, "__format__", lambda tensor, spec: str(tuple(tensor.shape))):
            super().test_bc_torch_dtype()


class ConvNeXtTest(DDePModelTests, unittest.TestCase):
    make_tester = ConvNeXtTester
    test_bc_torch_dtype = None  # It loads 42 models, and how dtypes are read depends on no encoder.


class ResNetTest(DDePModelTests, unittest.TestCase):
    make_tester = ResNetTester
    test_bc_torch_dtype = None
