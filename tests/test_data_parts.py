"""Parts of small sets: which examples are trained on, which are evaluated, and which labels are wrong."""

from dataclasses import replace

import numpy as np
import pytest

from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data.sources import load, unread_advice


def digits(**options):
    return load(DataConfig("digits", **options))


def rows(split) -> list[bytes]:
    return [image.tobytes() for image in split.image]


def test_without_options_the_set_is_whole():
    dataset = digits()
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)


def test_the_drawn_examples_differ_and_follow_from_the_seed():
    whole, drawn = digits().train, digits(num_examples=200, draw_seed=3).train
    label_of = dict(zip(rows(whole), whole.label, strict=True))
    assert len(set(rows(drawn))) == len(drawn) == 200
    assert [label_of[row] for row in rows(drawn)] == drawn.label.tolist()
    assert rows(digits(num_examples=200, draw_seed=3).train) == rows(drawn)
    assert rows(digits(num_examples=200, draw_seed=4).train) != rows(drawn)
    assert len(set(rows(drawn)) & set(rows(whole)[:200])) < 100, "not the first ones"


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_the_noise_is_symmetric_and_every_chosen_label_is_wrong(share):
    """The counts are those of a uniform choice among the other classes, by a chi-squared statistic."""
    clean, noisy = digits().train, digits(label_noise=share, draw_seed=1).train
    assert rows(clean) == rows(noisy)
    step_N = (noisy.label - clean.label) % 10
    assert np.sum(step_N != 0) == round(share * len(clean))
    count_9 = np.bincount(step_N, minlength=10)[1:]
    expected = count_9.sum() / 9
    assert np.sum((count_9 - expected) ** 2 / expected) < 21.7, "the 99.5 % quantile with 8 degrees of freedom"
    again = digits(label_noise=share, draw_seed=2).train
    assert (again.label != noisy.label).any()


def test_the_test_labels_stay_right():
    np.testing.assert_array_equal(digits(label_noise=0.5).test.label, digits().test.label)


def test_drawing_noise_and_holding_out_together_keep_training_and_evaluation_apart():
    """The same examples are drawn with and without noise, and the part held out has wrong labels too."""
    options = {"num_examples": 400, "holdout": 0.25, "draw_seed": 7}
    clean, noisy = digits(**options), digits(label_noise=0.4, **options)
    assert (len(noisy.train), len(noisy.test)) == (300, 100)
    assert not set(rows(noisy.train)) & set(rows(noisy.test))
    assert (rows(clean.train), rows(clean.test)) == (rows(noisy.train), rows(noisy.test))
    wrong = [int(np.sum(getattr(clean, part).label != getattr(noisy, part).label)) for part in ("train", "test")]
    assert sum(wrong) == 160
    assert wrong[1] > 20
    assert rows(digits(**options, eval_split="test").test) == rows(digits().test)
    trained = digits(label_noise=0.4, **options, eval_split="train")
    assert rows(trained.test) == rows(noisy.train)
    np.testing.assert_array_equal(trained.test.label, noisy.train.label)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_examples": 2000}, "data.num_examples is 2000, but digits has 1437: lower it"),
        ({"eval_split": "holdout"}, "give train or test; for a part of the training examples set data.holdout"),
        ({"eval_split": "dev"}, "data.eval_split is 'dev', which digits does not have: give train or test"),
        ({"num_examples": 2, "holdout": 0.1}, "evaluates on none"),
        ({"draw_seed": 1}, "has an effect only with data.num_examples or data.label_noise"),
        ({"label_noise": 1.0}, "data.label_noise is 1.0"),
    ],
)
def test_impossible_parts_are_one_line(options, part):
    with pytest.raises(ConfigError) as error:
        digits(**options)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_one_class_cannot_be_noisy():
    with pytest.raises(ConfigError, match="synthetic has one class"):
        load(DataConfig("synthetic", synthetic_num_classes=1, label_noise=0.1))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("photographs", "synthetic_num_classes", 4),
        ("digits", "train_split", "validation"),
        ("synthetic", "eval_labels", "real.json"),
        ("digits", "synthetic_image_size", 16),
    ],
)
def test_options_that_a_data_set_does_not_read_are_refused(name, option, value, tmp_path):
    expected = rf"^data\.{option} is {value}, but data set {name} does not read it: leave it out$"
    with pytest.raises(ConfigError, match=expected):
        load(DataConfig(name, root=str(tmp_path), **{option: value}))


def test_options_that_only_encoded_images_have_are_told():
    config = DataConfig("digits", image_size=64, crop_area=0.5)
    expected = "without effect, because the images of digits are not encoded: data.image_size 64, data.crop_area 0.5"
    assert unread_advice(config) == expected
    assert unread_advice(DataConfig("digits", batch_size=64)) is None
    assert unread_advice(replace(config, name="imagenet2012")) is None
