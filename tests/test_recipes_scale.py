"""The recipes for the largest networks and for fine-tuning have the values of their sources."""

from recipe_values import CROPPED, ERASE, HOLDOUT, IMAGENET, MIX, PLAIN, RAND_M9, SMOOTH, recipes, steps

IMAGENET_21K = 14_145_922
"""Without the 51,200 images that big_vision holds out."""


def scale(name: str, epochs: int, learning_rate: float) -> dict[str, object]:
    return {
        **PLAIN,
        **steps(epochs, 16_384, IMAGENET_21K),
        "data.name": "imagenet21k",
        "data.flip": True,
        "data.holdout": 51_200 / 14_197_122,
        "model.name": name,
        "model.patch_size": 14,
        "model.pool": "attention",
        "model.head_bias": -10.0,
        "optim.name": "adafactor",
        "optim.learning_rate": learning_rate,
        "optim.warmup_steps": 10_000,
        "optim.weight_decay": 0.03,
        "optim.clip_norm": 1.0,
        "optim.moment_dtype": "bfloat16",
        "train.loss": "sigmoid",
    }


B16 = {"model.name": "vit_b", "model.pool": "token"}
ADAMW = {**CROPPED, **PLAIN, **SMOOTH, "optim.name": "adamw"}
# big_vision/configs/transfer.py; the centre crop is 384 of 448 pixels.
SGD = {
    **CROPPED,
    **PLAIN,
    **HOLDOUT,
    **B16,
    "data.batch_size": 512,
    "data.image_size": 384,
    "data.eval_crop": 384 / 448,
    "optim.learning_rate": 0.03,
    "optim.nesterov": False,
    "optim.warmup_steps": 500,
    "optim.clip_norm": 1.0,
    "train.num_steps": 20_000,
}
FINETUNE = {
    "vit_b16_384": SGD,
    "vit_b16_attention": {**SGD, "optim.frozen": ("embed/*", "position", "token", "blocks/*/mlp/*")},
    "vit_b16_layer_decay": {
        **ADAMW,
        **RAND_M9,
        **ERASE,
        **steps(100, 1024),
        "model.name": "vit_b",
        "model.drop_path": 0.1,
        "optim.learning_rate": 2e-3,
        "optim.end_learning_rate": 1e-6,
        "optim.warmup_steps": 5 * IMAGENET // 1024,
        "optim.weight_decay": 0.05,
        "optim.layer_decay": 0.65,
    },
    "deit3_b16": {
        **ADAMW,
        **RAND_M9,
        **steps(20, 512),
        "data.eval_crop": 1.0,
        "model.name": "deit3_b",
        "model.pool": "token",
        "model.drop_path": 0.2,
        "optim.learning_rate": 1e-5,
        "optim.warmup_steps": 5 * IMAGENET // 512,
        "optim.weight_decay": 0.1,
    },
    "convnext_b_384": {
        **ADAMW,
        **{name: value for name, value in RAND_M9.items() if name not in MIX},
        **ERASE,
        **steps(30, 512),
        "data.image_size": 384,
        "data.eval_crop": 1.0,
        "model.name": "convnext_b",
        "model.drop_path": 0.8,
        "optim.learning_rate": 5e-5,
        "optim.end_learning_rate": 1e-6,
        "optim.weight_decay": 1e-8,
        "optim.layer_decay": 0.7 ** (12 / 36),
    },
}


def test_recipes_for_fine_tuning_have_the_published_values():
    assert recipes("finetune") == FINETUNE


def test_recipes_of_the_largest_networks_have_their_values():
    assert recipes("scale") == {"vit_g14": scale("vit_gg", 90, 8e-4), "vit_22b": scale("vit_22b", 30, 1e-3)}
