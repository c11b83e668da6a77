from training.data.errata import ERRATA, faults, reports
from training.data.musdb18 import validation_tracks
from training.data.song import SOURCES


def test_each_is_reported_in_one_sentence() -> None:
    assert reports(["PR - Oh No", "A - 0", "Hop Along - Sister Cities"]) == [
        "Hop Along - Sister Cities: other instruments bleed into the vocals; its vocals are not trained on",
        "PR - Oh No: the left channel of its mixture is not the sum of its stems; their sum is used as the mixture",
    ]


def test_faults_are_stretches_of_stems_to_train_on() -> None:
    assert faults("A - 0") == () and len(faults("Leaf - Wicked")) == 3
    for name in ERRATA:
        for fault in faults(name):
            assert fault.stem in SOURCES and 0 <= fault.start_s < fault.stop_s
            assert name not in validation_tracks()
