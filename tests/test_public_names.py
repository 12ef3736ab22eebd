"""What users import: a name added or taken away here is a change that they notice."""

import detr


def test_the_model_library_exports_these_names_and_nothing_else() -> None:
    assert sorted(detr.__all__) == ["Detections", "Detector", "Detr", "DetrConfig", "load", "save"]
    assert all(hasattr(detr, name) for name in detr.__all__)


def test_every_other_public_name_is_a_module_of_the_package() -> None:
    others = {name for name in vars(detr) if not name.startswith("_")} - set(detr.__all__)

    assert {type(getattr(detr, name)).__name__ for name in others} <= {"module"}
