import pytest

from detr.classes import COCO_CATEGORIES, Category, UnknownClass, category_named

PETS = (Category(0, "N/A"), Category(17, "cat"), Category(18, "dog"))


def test_coco_has_80_classes_whose_ids_are_their_indices_in_91_rows() -> None:
    assert [category.id for category in COCO_CATEGORIES] == list(range(91))
    assert sum(category.is_used for category in COCO_CATEGORIES) == 80


def test_the_ids_that_coco_left_out_are_not_used() -> None:
    unused = [category.id for category in COCO_CATEGORIES if not category.is_used]

    assert unused == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


@pytest.mark.parametrize(
    ("category_id", "name"),
    [(1, "person"), (13, "stop sign"), (17, "cat"), (44, "bottle"), (63, "couch"), (75, "remote"), (90, "toothbrush")],
)
def test_coco_ids_have_coco_s_names(category_id: int, name: str) -> None:
    assert COCO_CATEGORIES[category_id].name == name


def test_a_class_is_found_by_its_name() -> None:
    assert category_named("dog", PETS, model="pets") == Category(18, "dog")


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownClass, match=r"^classes: 'dgo' is not a class of pets\. Did you mean 'dog'\?$"):
        category_named("dgo", PETS, model="pets")


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(UnknownClass, match=r"'zeppelin' is not a class of pets\. It has: cat, dog"):
        category_named("zeppelin", PETS, model="pets")


def test_upper_and_lower_case_matter_and_the_suggestion_says_so() -> None:
    with pytest.raises(UnknownClass, match="Did you mean 'cat'"):
        category_named("Cat", PETS, model="pets")


def test_unused_ids_cannot_be_asked_for() -> None:
    with pytest.raises(UnknownClass):
        category_named("N/A", PETS, model="pets")
