import pytest

from uphold.core.errors import UsageError
from uphold.models.sites.site import Site, parse_site


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("residual.-1", Site("residual", -1)),
        ("residual.3", Site("residual", 3)),
        ("head.3.5", Site("head", 3, 5)),
        ("key.0.1", Site("key", 0, 1)),
        ("hidden.2", Site("hidden", 2)),
        ("module:a.b.0", Site("module", path="a.b.0")),
        ("module<a.b.0", Site("module-input", path="a.b.0")),
    ],
)
def test_names_are_read_and_written(text: str, site: Site) -> None:
    assert parse_site(text) == site
    assert str(site) == text


@pytest.mark.parametrize(
    "text", ["", "head", "head.3", "residual.3.1", "heads.3.1", "mlp.x", "module", "module:", "a:b"]
)
def test_what_names_no_site_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no site: expected"):
        parse_site(text)
