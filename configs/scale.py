"""Recipes for the largest vision transformers, on ImageNet-21k: 14,197,122 images, a folder `imagenet21k` in data.root.

Both papers trained on JFT-3B, which is not public, with a learning rate of 1 / sqrt(step) and 100 times the weight
decay in the head. ImageNet-21k, a cosine and one decay are this project's own choice, so no result is published. The
recipes are plain; `--gnp.alpha 0.8 --gnp.perturb-groups 256` adds the penalty, for groups of 64 examples.

The memory of `vit_g14` is computed here, not measured. Bytes for each parameter, of which each of n chips holds 1/n: 4
(float32) + 2 (first moment in bfloat16; the second one of Adafactor is a row and a column) + 2 (bfloat16 copy) + 2
(gradient) = 10. With the penalty 2 (second gradient) + 2 (perturbed copy) more: 14. Activations with `remat`, for each
image of a chip: the input of each block, 256 tokens x width x 2 bytes x depth. Gathered parameters: those of two
blocks.
"""

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig

HOLDOUT = 51_200 / 14_197_122
"""As in big_vision/configs/vit_i21k.py."""
NUM_EXAMPLES = 14_197_122 - 51_200
BATCH_SIZE = 16_384


def vit_g14() -> Config:
    """ViT-G/14, 1.9 billion parameters, 90 epochs of ImageNet-21k.

    Paper: arXiv 2106.04560; big_vision/configs/proj/scaling_laws/train_vit_g.py.
    Command: gnp-scale train configs/scale.py:vit_g14 --data.root gs://BUCKET/data --mesh.replica 2 --mesh.fsdp 128
    Hardware: TPU v5e-256 (15.7 GiB a chip): with a batch of 4096, 1.4 GiB of each chip, penalised 1.6 GiB, as
        `gnp-scale plan` says with --topology v5e:16x16. Its attention does not divide over 256 shards.
    Batch: 16384.
    Result: none published for this data set; 90.45 % on ImageNet after JFT-3B and fine-tuning.
    Hours: unknown.
    Run: not run here.
    """
    return _config("vit_gg", epochs=90, learning_rate=8e-4)


def vit_22b() -> Config:
    """ViT-22B, 21.9 billion parameters, 30 epochs of ImageNet-21k.

    Paper: arXiv 2302.05442 (rate 1e-3, decay 0.03, warm-up of 10,000 steps, MAP head: from memory).
    Command: gnp-scale train configs/scale.py:vit_22b --data.root gs://BUCKET/data --mesh.replica 4
    Hardware: TPU v5p-512 (256 chips of 95.7 GiB): 18.3 GiB of each chip, penalised 19.3 GiB, as `gnp-scale plan` says
        with --topology v5p:4x8x8. On 2,048 chips (v5p:8x16x16, --mesh.replica 8): 3.0 GiB and 3.6 GiB. On v5e-256 (16
        GB a chip) add --train.accumulate-steps 4 (not planned).
    Batch: 16384 (65536 in the paper, from memory).
    Result: none published for this data set.
    Hours: 53 to 55 on v5p-512, penalised 107 to 111, both by `gnp-scale plan`; 7 to 9 and 13 to 17 on 2,048 chips.
    Run: not run here.
    """
    return _config("vit_22b", epochs=30, learning_rate=1e-3)


def _config(name: str, epochs: int, learning_rate: float) -> Config:
    num_steps = epochs * NUM_EXAMPLES // BATCH_SIZE
    return Config(
        data=DataConfig(
            name="imagenet21k",
            batch_size=BATCH_SIZE,
            eval_batch_size=4096,
            holdout=HOLDOUT,
            flip=True,
            prefetch_steps=2,
        ),
        model=ModelConfig(
            name=name,
            patch_size=14,
            pool="attention",
            dtype="bfloat16",
            remat="block",
            scan_layers=True,
            head_bias=-10.0,
        ),
        gnp=GnpConfig(alpha=0.0),
        optim=OptimConfig(
            name="adafactor",
            learning_rate=learning_rate,
            warmup_steps=10_000,
            weight_decay=0.03,
            clip_norm=1.0,
            moment_dtype="bfloat16",
        ),
        mesh=MeshConfig(replica=1, fsdp=-1, tensor=1),
        train=TrainConfig(
            num_steps=num_steps,
            loss="sigmoid",
            gradient_dtype="bfloat16",
            log_every_steps=50,
            eval_every_steps=1000,
        ),
    )
