"""What TensorBoard shows: numbers under their tags, and nothing of what a killed run wrote after the step that was restored."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog

from resnet_jax.training.events import Events


def read(file: Path) -> list[Any]:
    """The events of a file, as tfrecords: length, checksum, content, checksum."""
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_numbers_stand_under_their_tags_and_steps(tmp_path: Path) -> None:
    events = Events(tmp_path / "a" / "tensorboard", step=0)
    events.write("train/loss", 0.5, 10)
    events.write("test/error_percent", float("nan"), 20)
    events.close()
    (file,) = (tmp_path / "a" / "tensorboard").iterdir()
    assert ".tfevents." in file.name
    found = [(e.step, v.tag, v.simple_value) for e in read(file) for v in e.summary.value]
    assert found[0] == (10, "train/loss", 0.5)
    assert found[1][:2] == (20, "test/error_percent")
    assert found[1][2] != found[1][2]


def test_session_says_the_step_that_it_begins_with(tmp_path: Path) -> None:
    """TensorBoard hides what earlier files say of it and of later ones."""
    Events(tmp_path, step=7).close()
    (file,) = tmp_path.iterdir()
    version, *_, start = read(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (8, SessionLog.START)
