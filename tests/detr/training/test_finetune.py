from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detr.classes import COCO_CATEGORIES, Category
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from detr.training.finetune import ClassTransfer, match_categories, with_categories

OLD = (Category(3, "cat"), Category(4, "N/A"), Category(7, "traffic light"), Category(9, "dog"))
TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8,), (1,)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    dropout=0.1,
    queries=3,
    categories=OLD,
)


@pytest.fixture
def model() -> Detr:
    torch.manual_seed(0)
    return Detr(TINY).eval()


def row(model: Detr, index: int) -> Tensor:
    """Weight and bias of one row of the class head."""
    return torch.cat((model.class_embed.weight[index], model.class_embed.bias[index, None])).detach()


def test_rows_follow_their_names_to_other_places_and_ids(model: Detr) -> None:
    new = (Category(100, "zebra"), Category(-5, "dog"), Category(0, "cat"))

    tuned, transfer = with_categories(model, new)

    assert tuned.config == replace(TINY, categories=new)
    assert tuned.class_embed.weight.shape == (4, 16)
    assert torch.equal(row(tuned, 1), row(model, 3))
    assert torch.equal(row(tuned, 2), row(model, 0))
    assert torch.equal(row(tuned, 3), row(model, 4))  # no-object stays the last
    assert transfer == ClassTransfer(kept=("dog", "cat"), new=("zebra",), dropped=("traffic light",), respelled=())


def test_everything_else_is_copied_and_the_old_model_stays(model: Detr) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    tuned, _ = with_categories(model, (Category(1, "zebra"),))
    state = tuned.state_dict()
    for name, tensor in before.items():
        if not name.startswith("class_embed"):
            assert torch.equal(state[name], tensor), name
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.zero_()

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not tuned.training
    assert all(parameter.requires_grad for parameter in tuned.parameters())


def test_the_same_categories_are_the_same_model_unused_rows_included(model: Detr) -> None:
    tuned, transfer = with_categories(model, OLD)

    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tuned.state_dict().items())
    assert transfer == ClassTransfer(kept=("cat", "traffic light", "dog"), new=(), dropped=(), respelled=())


def test_new_rows_begin_as_a_fresh_head_does_and_depend_on_the_seed_alone(model: Detr) -> None:
    new = tuple(Category(index, f"thing {index}") for index in range(400))

    tuned, _ = with_categories(model, new, seed=3)
    torch.manual_seed(99)
    again, _ = with_categories(model, new, seed=3)
    other, _ = with_categories(model, new, seed=4)

    assert torch.equal(tuned.class_embed.weight, again.class_embed.weight)
    assert torch.equal(tuned.class_embed.bias, again.class_embed.bias)
    assert not torch.equal(tuned.class_embed.weight[:-1], other.class_embed.weight[:-1])
    torch.manual_seed(0)
    fresh = nn.Linear(16, 401)
    for ours, theirs in ((tuned.class_embed.weight, fresh.weight), (tuned.class_embed.bias, fresh.bias)):
        # both uniform within 1 / sqrt(16)
        assert ours[:-1].abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)
        assert ours[:-1].abs().max().item() <= 0.25
        assert ours[:-1].std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def test_changing_classes_draws_no_global_random_numbers(model: Detr) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    with_categories(model, (Category(1, "zebra"),))

    assert torch.equal(torch.rand(1), expected)


def test_a_name_that_is_spelled_otherwise_is_found_and_reported(model: Detr) -> None:
    tuned, transfer = with_categories(model, (Category(1, "Traffic_Light"), Category(2, "DOG")))

    assert torch.equal(row(tuned, 0), row(model, 2))
    assert torch.equal(row(tuned, 1), row(model, 3))
    assert transfer.kept == ("Traffic_Light", "DOG")
    assert transfer.respelled == (("traffic light", "Traffic_Light"), ("dog", "DOG"))


@pytest.mark.parametrize(
    ("old", "new", "origins"),
    [
        (["cat", "Cat"], ["Cat", "cat"], (1, 0)),  # exactly first
        (["cat", "Cat"], ["CAT"], (None,)),  # two would do
        (["cat"], ["Cat", "CAT"], (None, None)),  # two want it
        (["cat"], ["CAT", "cat"], (None, 0)),  # taken by its own name
        (["hot dog", "hotdog"], ["hotdog", "Hot-Dog"], (1, 0)),
        (["N/A"], ["N/A"], (0,)),
        (["cat"], ["N/A"], (None,)),
    ],
)
def test_a_row_is_taken_over_only_where_no_other_could_be_meant(
    old: list[str], new: list[str], origins: tuple[int | None, ...]
) -> None:
    categories = [tuple(Category(index, name) for index, name in enumerate(names)) for names in (old, new)]

    assert match_categories(*categories) == origins


def test_cocos_80_without_the_unused_ids_find_all_their_rows() -> None:
    used = tuple(category for category in COCO_CATEGORIES if category.is_used)

    origins = match_categories(COCO_CATEGORIES, used)

    assert origins == tuple(category.id for category in used)  # in COCO's model the row is the id


def test_dropout_can_be_another_and_precision_and_mode_stay(model: Detr) -> None:
    tuned, _ = with_categories(model.double().train(), (Category(1, "cat"),), dropout=0.3)

    assert tuned.config.dropout == 0.3
    assert tuned.training
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float64}
    assert {module.p for module in tuned.modules() if isinstance(module, nn.Dropout)} == {0.3}


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ((), "there must be at least one"),
        ((Category(1, "a"), Category(1, "b")), "ids must be unique"),
        ((Category(1, "a"), Category(2, "a")), "'a' appears 2 times with different ids"),
    ],
)
def test_categories_that_cannot_be_are_refused(model: Detr, categories: tuple[Category, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_categories(model, categories)


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        empty = Detr(TINY)

    with pytest.raises(ValueError, match="has no weights yet"):
        with_categories(empty, OLD)
