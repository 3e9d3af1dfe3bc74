"""The outcome of a check as JUnit XML, which pipelines (Jenkins, GitLab, Azure, GitHub actions) show as tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from anomaly_ae.files import write_bytes
from anomaly_ae.judging.gates import Outcome

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(suites: Mapping[str, Sequence[Outcome]]) -> bytes:
    """Return a test suite for every name that has outcomes, with a test case for each; what is not met is a failure."""
    root = ET.Element("testsuites")
    for name, outcomes in suites.items():
        if not outcomes:
            continue
        n_failed = sum(not outcome.passed for outcome in outcomes)
        counts = {"tests": str(len(outcomes)), "failures": str(n_failed), "errors": "0", "skipped": "0"}
        suite = ET.SubElement(root, "testsuite", {"name": _clean(name), **counts})
        for outcome in outcomes:
            case = ET.SubElement(suite, "testcase", {"classname": _clean(name), "name": _clean(outcome.name)})
            text = _clean(outcome.text)
            if outcome.passed:
                ET.SubElement(case, "system-out").text = text
            else:
                ET.SubElement(case, "failure", {"message": text}).text = text
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def write_junit(path: Path, suites: Mapping[str, Sequence[Outcome]]) -> None:
    """Write the XML file atomically.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_bytes(path, junit_xml(suites))


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)
