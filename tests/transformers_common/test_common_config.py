"""transformers' own tests of configurations."""

import unittest

from common_release import import_common
from tiny_models import ConvNeXtTester, DDePModelTester

from ddep_hub import DDePConfig


common = import_common("test_configuration_common")


class ConfigTest(unittest.TestCase):
    def test_config(self) -> None:
        for tester in (DDePModelTester, ConvNeXtTester):
            with self.subTest(tester.__name__):
                properties = ["encoder_name", "num_channels", "decoder_hidden_sizes"]
                common.ConfigTester(
                    self,
                    config_class=DDePConfig,
                    has_text_modality=False,
                    common_properties=properties,
                    **tester.config_kwargs,
                ).run_common_tests()
