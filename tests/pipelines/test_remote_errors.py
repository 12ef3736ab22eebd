"""What errors of Ray say, in one sentence."""

from __future__ import annotations

from pipelines.remote_errors import first_line, remote_sentence

NO_PACKAGE = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::MapWorker(Map(ShardActor)).__init__()"
    "\x1b[39m (pid=11951, ip=10.0.0.7, actor_id=0b9d4d1e, repr=MapWorker(<initializing>))\n"
    "  At least one of the input arguments for this task could not be computed:\n"
    "ray.exceptions.RaySystemError: System error: No module named 'pipelines'\ntraceback: Traceback (most recent call "
    "last):\n          ^^^^^^^^\nModuleNotFoundError: No module named 'pipelines'"
)


def test_a_node_without_the_package_is_named_with_what_to_do() -> None:
    assert remote_sentence(RuntimeError(NO_PACKAGE)) == (
        "node 10.0.0.7 has no Python package pipelines. Install ray-detr with all it needs on every node, in the same "
        "versions, or submit the command with `ray job submit --working-dir .`"
    )


def test_what_else_is_raised_on_a_node_is_reported_with_the_node_and_its_reason() -> None:
    text = "\x1b[36mray::_probe()\x1b[39m (pid=7, ip=10.0.0.7)\n  File x\nImportError: libcudart.so: cannot open"
    assert remote_sentence(RuntimeError(text)) == "on node 10.0.0.7: ImportError: libcudart.so: cannot open"


def test_a_sentence_of_rays_has_no_colours() -> None:
    assert first_line(RuntimeError("\x1b[36mray::_probe()\x1b[39m died\n  File x")) == "ray::_probe() died"
    assert remote_sentence(RuntimeError("\x1b[36mit\x1b[39m died")) == "it died"
    assert first_line(RuntimeError("")) == "RuntimeError"
