import pytest
import torch
from sklearn.datasets import load_digits

from gamlib.training import data


def test_digits_are_scikit_learns_images_each_in_one_part() -> None:
    test, validation = data.load("digits"), data.load("digits", evaluate_on="validation")
    assert torch.equal(test.train, validation.train)
    images = torch.cat([test.train, test.test, validation.test])
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.uint8
    theirs = torch.from_numpy(load_digits().images).float() * (255 / 16)
    large = torch.nn.functional.interpolate(theirs[:, None], (32, 32), mode="bilinear").round().to(torch.uint8)
    assert sorted(map(bytes, images[:, 0].numpy())) == sorted(map(bytes, large[:, 0].numpy()))


def test_parts_are_stratified_and_the_same_every_time() -> None:
    first, again = data.load("digits"), data.load("digits")
    assert torch.equal(first.test, again.test) and torch.equal(first.train_labels, again.train_labels)
    assert first.train_labels.bincount().tolist() == [20] * 10
    shares = first.test_labels.bincount() / torch.from_numpy(load_digits().target).bincount()
    assert float(shares.max() - shares.min()) < 0.02


def test_a_fraction_keeps_every_class_and_leaves_the_test_alone() -> None:
    part, whole = data.load("digits", 0.25), data.load("digits")
    assert part.train_labels.bincount().tolist() == [5] * 10
    assert torch.equal(part.test, whole.test)


@pytest.mark.parametrize(("arguments", "message"), [(("mnist",), "allowed: digits"), (("digits", 0.01), "0.05 to 1")])
def test_a_bad_value_is_refused(arguments: tuple[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(*arguments)


def test_augmentation_shifts_by_at_most_the_padding_and_keeps_the_type() -> None:
    images = torch.zeros(64, 3, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    moved = data.augment(images, pad=2, flip=False, generator=torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    places = moved[:, 0].nonzero()
    assert len(places) == 64
    assert set(places[:, 1].tolist()) == set(places[:, 2].tolist()) == {2, 3, 4, 5, 6}


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.zeros(400, 3, 4, 4, dtype=torch.uint8)
    images[:, :, :, 0] = 1
    flipped = data.augment(images, pad=0, flip=True, generator=torch.Generator().manual_seed(0))[:, 0, 0, 3].sum()
    assert 150 < int(flipped) < 250


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = data.load("digits").train
    std, mean = torch.std_mean(images.float(), dim=(0, 2, 3))
    normed = data.normalise(images, mean, std)
    torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
