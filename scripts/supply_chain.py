"""What the package stands on: licences, known vulnerabilities and an SBOM of all that an installation runs.

    python scripts/supply_chain.py                         # licences; exit code 1 for one that is not allowed
    python scripts/supply_chain.py --audit                 # and pip-audit over constraints.txt; skipped without a network
    python scripts/supply_chain.py --sbom sbom.cdx.json    # and a CycloneDX file

Counted is what is installed here of `student-factory[files,serve]`, with everything that it needs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE, EXTRAS = "student-factory", ("files", "serve")
AUDIT_SECONDS = 90

PERMISSIVE = {
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "0BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Apache-2.0",
    "BSL-1.0",
    "Zlib",
    "CC0-1.0",
}
ALLOWED = PERMISSIVE | {
    "PSF-2.0",
    "CNRI-Python",
    "Apache-2.0 WITH LLVM-exception",
    "MPL-2.0",
}  # the last asks for its own files only
ACCEPTED = {  # packages under another licence: why, and since when
    "chardet": "LGPL, imported as it is and not shipped; lm-eval needs it (2026-11-28)",
    "dominate": "LGPL, imported as it is and not shipped; lm-eval needs it (2026-11-28)",
    "frozendict": "LGPL, imported as it is and not shipped; semhash needs it (2026-11-28)",
    "pycountry": "LGPL, imported as it is and not shipped; codecarbon needs it (2026-11-28)",
}
ACCEPTED_VULNERABILITIES: dict[str, str] = {}  # id -> why, and since when
WRITTEN = {  # how packages without an SPDX expression name their licence: the beginning of it, in lower case
    "apache": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "contourpy": "BSD-3-Clause",
    "isc": "ISC",
    "mit": "MIT",
    "mozilla public license 2.0": "MPL-2.0",
    "mpl-2.0": "MPL-2.0",
    "psf": "PSF-2.0",
    "python software foundation": "PSF-2.0",
    "the mit": "MIT",
}


@dataclass(frozen=True)
class Package:
    """One that is installed, and the names of those that it needs."""

    name: str
    version: str
    license: str  # an SPDX expression, or as it is written
    needs: tuple[str, ...] = ()

    @property
    def is_allowed(self) -> bool:
        """Every part of an AND, and one of an OR; or the package itself is accepted."""
        parts = re.sub(r"[()]", "", self.license).split(" AND ")
        return self.name in ACCEPTED or all(any(one in ALLOWED for one in part.split(" OR ")) for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--audit", action="store_true", help="run pip-audit over constraints.txt")
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="write a CycloneDX file")
    arguments = parser.parse_args()
    packages = run_time_packages({canonicalize_name(one.metadata["Name"]): one for one in distributions()})
    kinds = Counter(package.license for package in packages if package.name not in ACCEPTED)
    print(f"licences of {len(packages)} packages: {', '.join(f'{name} {count}' for name, count in kinds.most_common(6))}, ...")
    wrong = [package for package in packages if not package.is_allowed]
    for package in wrong:
        print(
            f"error: {package.name} {package.version} has the licence {package.license[:80]!r}; replace it, or accept it here"
        )
    if arguments.sbom:
        arguments.sbom.write_text(sbom(packages), encoding="utf-8")
        print(f"{arguments.sbom}: a CycloneDX list of {len(packages)} packages")
    found = audit() if arguments.audit else 0
    return 1 if wrong or found else 0


# ---------------------------------------------------------------------------------------------------------------- packages


def run_time_packages(installed: Mapping[str, Distribution]) -> list[Package]:
    """``run_time_packages(installed)``: the package and what it needs, by name."""
    found: dict[str, Package] = {}
    asked: set[tuple[str, tuple[str, ...]]] = set()
    wanted = [(canonicalize_name(PACKAGE), EXTRAS)]
    for name, extras in wanted:  # which grows
        if (name, extras) in asked or name not in installed:
            continue
        asked.add((name, extras))
        needs = [
            one
            for one in map(Requirement, installed[name].requires or [])
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
        wanted += [(canonicalize_name(one.name), tuple(sorted(one.extras))) for one in needs]
        names = {canonicalize_name(one.name) for one in needs if canonicalize_name(one.name) in installed}
        before = found[name].needs if name in found else ()
        found[name] = Package(
            name, installed[name].version, license_of(installed[name]), tuple(sorted({*before, *names} - {name}))
        )
    return sorted(found.values(), key=lambda package: package.name)


def license_of(distribution: Distribution) -> str:
    """``license_of(distribution("numpy"))``: the SPDX expression, else what its classifiers or its text say."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [one.rpartition("::")[2].strip() for one in metadata.get_all("Classifier") or [] if one.startswith("License")]
    text = " ".join(str(metadata.get("License") or "").split())
    is_expression = re.fullmatch(r"[\w.+-]+( (AND|OR) [\w.+-]+)+|[\w.+-]+-[\d.]+[\w.-]*", text)
    if is_expression:
        return text
    written = next(filter(None, [*classifiers, text]), "none")
    return next((name for begin, name in WRITTEN.items() if written.lower().startswith(begin)), written)


# -------------------------------------------------------------------------------------------------------------------- SBOM


def sbom(packages: list[Package]) -> str:
    """``sbom(run_time_packages(installed))``: JSON of CycloneDX 1.6."""
    licenses = LicenseFactory()
    components = {
        package.name: Component(
            name=package.name,
            version=package.version,
            type=ComponentType.APPLICATION if package.name == PACKAGE else ComponentType.LIBRARY,
            purl=PackageURL("pypi", name=package.name, version=package.version),
            bom_ref=f"{package.name}@{package.version}",
            licenses=[licenses.make_from_string(package.license[:200])],
        )
        for package in packages
    }
    bom = Bom(components=[one for name, one in components.items() if name != PACKAGE])
    bom.metadata.component = components[PACKAGE]
    for package in packages:
        bom.register_dependency(components[package.name], [components[name] for name in package.needs if name in components])
    return JsonV1Dot6(bom).output_as_string(indent=2)


# ------------------------------------------------------------------------------------------------------------------- audit


def audit() -> int:
    """``audit()``: how many known vulnerabilities the pinned versions have; 0 with a line where nobody can be asked."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    command += [part for one in ACCEPTED_VULNERABILITIES for part in ("--ignore-vuln", one)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"pip-audit skipped: the package index took more than {AUDIT_SECONDS} seconds")
        return 0
    except (ValueError, KeyError):
        print(f"pip-audit skipped: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1][:200]}")
        return 0
    return report(packages)


def report(packages: list[dict[str, object]]) -> int:
    """``report(json.loads(text)["dependencies"])``: prints what pip-audit found; how many vulnerabilities that is."""
    known = [one for one in packages if "vulns" in one]
    found = [(one["name"], one["version"], bug) for one in known for bug in one["vulns"]]  # type: ignore[attr-defined]
    for name, version, bug in found:
        fixed = ", ".join(bug["fix_versions"]) or "nowhere yet"
        print(f"error: {name} {version} has {bug['id']}, fixed in {fixed}; raise it in constraints.txt, or accept it here")
    if not known:
        print(f"pip-audit skipped: the package index has nothing to say of the {len(packages)} pinned versions")
        return 0
    print(
        f"pip-audit: {len(found)} known vulnerabilities in {len(known)} of {len(packages)} pinned versions that the index knows"
    )
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
