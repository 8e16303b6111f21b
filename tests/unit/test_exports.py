"""A bundle as a folder: it comes back with its hash, and a changed byte is named, whichever it is."""

import hashlib
import json
import re

import pytest

from domain.bundles import Bundle, BundledTier, Lineage, rendering
from domain.certificates import Certificate, NotCertified
from domain.errors import InputError
from domain.exports import BUNDLE, MANIFEST, files_of, read_files
from domain.prompts import Demo, PromptVersion
from domain.requests import row_request
from domain.servings import Served
from domain.workloads import Prices, Tier, TierName
from tests.unit.test_bundles import CERTIFIED, REFUSED, SCHEMA

PROMPT = PromptVersion(
    instructions="Näme {the} {{topic}}.\r\nOne line.",
    answer_format="f",
    input_fields=("text",),
    output_fields=("topic",),
    demos=(Demo(inputs={"text": "my card"}, output={"topic": "card"}),),
)


def bundle(certificate: Certificate | NotCertified = CERTIFIED) -> Bundle:
    tier = Tier(model="m", usd_per_million=Prices(input=1, output=2))
    part = BundledTier(tier=tier, prompt=PROMPT, prior={"card": 0.5}, rendered=rendering(PROMPT), served=Served())
    return Bundle(
        workload="w",
        cheap=part,
        strong=part,
        json_schema=SCHEMA.json_schema,
        decisive="topic",
        max_reasks=1,
        threshold=certificate.threshold if isinstance(certificate, Certificate) else None,
        certificate=certificate,
        lineage=Lineage(workload_hash="h", dataset_version="d", calibration_rows=500),
    )


def written(made: Bundle) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files_of(made).items()}


@pytest.mark.parametrize("certificate", [CERTIFIED, REFUSED])
def test_a_folder_comes_back_as_the_bundle_that_it_was(certificate: Certificate | NotCertified) -> None:
    made = bundle(certificate)
    assert read_files(written(made), "f") == made
    assert read_files(written(made), "f").hash == made.hash
    assert made.hash in files_of(made)["README.md"]


def test_files_of_others_in_the_folder_do_no_harm() -> None:
    assert read_files({**written(bundle()), ".DS_Store": b"x"}, "f") == bundle()


@pytest.mark.parametrize("name", files_of(bundle()))
def test_every_changed_byte_is_named_by_its_file_and_line(name: str) -> None:
    files = written(bundle())
    data = files[name]
    for at in range(0, len(data), 7):
        spoiled = data[:at] + (b"#" if data[at : at + 1] != b"#" else b"*") + data[at + 1 :]
        with pytest.raises(InputError) as caught:
            read_files({**files, name: spoiled}, "f")
        if name == MANIFEST:  # a changed mark is not told from a changed line
            assert caught.value.place.file in {f"f/{other}" for other in files}
        else:
            assert (caught.value.place.file, caught.value.place.line) == (f"f/{name}", data[:at].count(b"\n") + 1)


@pytest.mark.parametrize("name", files_of(bundle()))
def test_a_file_that_is_missing_or_cut_is_named(name: str) -> None:
    files = written(bundle())
    with pytest.raises(InputError, match=re.escape(f"f/{name}: the file is missing")):
        read_files({other: data for other, data in files.items() if other != name}, "f")
    with pytest.raises(InputError, match=re.escape(name)):
        read_files({**files, name: files[name][: len(files[name]) // 2]}, "f")
    with pytest.raises(InputError, match=re.escape(name)):
        read_files({**files, name: files[name] + b"more\n"}, "f")


def test_a_bundle_that_is_cut_between_two_lines_is_named_by_the_first_line_that_is_missing() -> None:
    files = written(bundle())
    kept = files[BUNDLE].split(b"\n")[:-3]
    with pytest.raises(InputError, match="the rest of the file is missing") as caught:
        read_files({**files, BUNDLE: b"\n".join(kept)}, "f")
    assert caught.value.place.line == len(kept) + 1


def test_another_bundle_under_the_first_ones_manifest_is_refused() -> None:
    files, other = written(bundle()), written(bundle(REFUSED))
    with pytest.raises(InputError, match="this line is not what was exported"):
        read_files({**other, MANIFEST: files[MANIFEST]}, "f")
    manifest = json.loads(other[MANIFEST])
    forged = json.dumps({**manifest, "hash": bundle().hash}, indent=2, sort_keys=True).encode() + b"\n"
    with pytest.raises(InputError, match="hash is"):
        read_files({**other, MANIFEST: forged}, "f")


def test_a_folder_that_an_earlier_version_wrote_in_other_words_is_read_and_its_changed_lines_are_named() -> None:
    files = written(bundle())
    old = files["README.md"].replace(b"How to use it", b"Use")
    manifest = json.loads(files[MANIFEST])
    manifest["lines"]["README.md"] = [hashlib.sha256(line).hexdigest()[:8] for line in old.split(b"\n")]
    marked = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
    earlier = {**files, "README.md": old, MANIFEST: marked}
    assert read_files(earlier, "f") == bundle()
    with pytest.raises(InputError, match=r"f/README.md:7: this line is not what was exported"):
        read_files({**earlier, "README.md": old.replace(b"Use", b"Abuse")}, "f")
    with pytest.raises(InputError, match=r"f/manifest.json:1:2: byte 1"):
        read_files({**earlier, MANIFEST: marked.replace(b"\n", b" \n", 1)}, "f")


@pytest.mark.parametrize("name", list(TierName))
def test_the_request_in_the_folder_is_the_one_that_headrace_sends(name: TierName) -> None:
    made = bundle()
    body = json.loads(files_of(made)[f"request-{name.value}.json"])
    sent = row_request(made[name].prompt.template(), tier=made[name].tier, schema=SCHEMA)
    assert body == sent.body
