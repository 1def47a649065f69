"""What users write in ``domains/*.yaml``: its schema, and how it is read and checked. No torch."""

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "shipped"  # in the checkout a link to domains/, in a wheel a copy of it


def default_domains() -> Path:
    """``default_domains()``: ``./domains``, or the families and domains that come with the package if there is none."""
    here = Path("domains")
    return here if here.exists() else SHIPPED
