"""tf.data as in the ImageNet examples of TensorFlow and Flax. Command: tf_data.py FOLDER NUM_THREADS.

It needs TensorFlow alone, in an environment of its own.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))

import tensorflow as tf
from protocol import BATCH_SIZE, IMAGE_SIZE, MIN_AREA, serve


def read(path):
    """An image, cropped while it is decoded, resized, and mirrored half of the time."""
    data = tf.io.read_file(path)
    shape = tf.io.extract_jpeg_shape(data)
    box = tf.zeros((1, 0, 4))
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        box,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(MIN_AREA, 1),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_FAST")
    image = tf.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE))
    return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))


def batches(folder: Path, num_threads: int) -> Iterator:
    """Batches of uint8 images, cropped at random, half of them mirrored."""
    paths = sorted(str(path) for path in folder.rglob("*.JPEG"))
    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = data.map(read, num_parallel_calls=num_threads).batch(BATCH_SIZE).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_threads
    return data.with_options(options).as_numpy_iterator()


if __name__ == "__main__":
    serve(batches(Path(sys.argv[1]), int(sys.argv[2])))
