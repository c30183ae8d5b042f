from jobs.docs import configuration_reference
from pipeline.config import Config, all_keys
from tests.conftest import ROOT


def test_the_configuration_reference_is_the_option_tree() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == configuration_reference(), "run `make docs`"
    for key in all_keys(Config):
        assert f"`{key}`" in text
        assert f"`{key}` | `None` | None" not in text
