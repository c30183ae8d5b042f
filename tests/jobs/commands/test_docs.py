import re

from emolake.jobs.docs import cli_reference, configuration_reference
from emolake.pipeline.config import Config, all_keys
from tests.conftest import ROOT


def test_the_configuration_reference_is_the_option_tree() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == configuration_reference(), "run `make docs`"
    for key in all_keys(Config):
        assert f"`{key}`" in text
        assert f"`{key}` | `None` | None" not in text


def test_the_command_line_reference_is_the_parser() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert text == cli_reference(), "run `make docs`"
    for command in ("annotate", "plan", "status", "report", "export", "models verify", "bench"):
        assert f"## emolake {command}\n" in text


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "infra").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
