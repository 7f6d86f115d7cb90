"""The prose of docs/performance.md around its tables."""

OPENING = """# Performance

<!-- Written by `make benchmark`; the words are in benchmarks/speed/text.py. -->

Each line compares this package with a peer, or with its own floor, on one machine and in turns: medians over rounds,
as ratios, with the quartiles of the rounds' ratios. Above 1, this package is ahead. For memory, the ratio is the
peer's peak divided by this package's. `make benchmark` measures all of it anew in about a quarter of an hour, writes
the CSV files in `benchmarks/speed/results/` and this page, and marks the lines that fell by more than 10 %.

{measured}

![Ratios with quartiles, and growth](performance.png)"""

# Why a line is below its goal: the first entry whose words are all in the line.
NOTES = {
    ("DDeP step", "TransUNet", "float32"): (
        "Half of the step's operations are the frozen encoder's forward pass, which both sides need: products of "
        "large matrices, at the device's rate already."
    ),
    ("share of the matrix rate", "bf16"): (
        "Products are three times as fast as in float32, while norms, activations, resampling and loss move as many "
        "values as before: they bound the step."
    ),
    ("memory of a DDeP step",): (
        "The decoder's blocks at full and half resolution hold most of the values that a step stores, and a DeP step "
        "stores these as well. Computing norm, activation and upsampling again saves too little, see below."
    ),
    ("fine-tuning step", "UPerNet"): (
        "UPerNet spends most of its operations in 3x3 convolutions of 256 and 1024 channels at stride 4 and coarser, "
        "which run near the matrix rate; a U-Net spends them at full resolution on 16 and 32 channels, where memory "
        "bounds. What is compared is time per operation, not the time of a step."
    ),
    ("fine-tuning step", "SegFormer"): (
        "As for UPerNet: fewer channels at finer resolution take more time per operation."
    ),
    ("whole pretraining job",): (
        "With two cores the worker that decodes takes a part of one from the step, in proportion: about 2.3 ms of one "
        "core for each image. Faster steps make that share larger."
    ),
    ("memory of prediction",): (
        "The network at 512x512 is a smaller part than the probabilities of the whole image, 19 classes of 2 MP in "
        "float32, which windows are added up in."
    ),
    ("loading", "500x375"): (
        "Such a photograph is decoded whole, by torchvision as fast as anyone's libjpeg-turbo allows, and scaled by "
        "torchvision: the rest is the header, 0.1 ms."
    ),
    ("loading", "2048x1024"): (
        "Most of the time goes into the Huffman code, which a reduced scale does not shorten; the ratio grows "
        "with the image's size relative to the crop."
    ),
    ("loading", "PNG"): "zlib, and scaling three equal channels where the peer scales one.",
}

CLOSING = """With convolutional encoders nothing grows faster than the pixels. Attention does: twice the side and four
times the patches take seven times the time with ViT-S/14. Wider decoders cost up to the square of their width, as
convolutions do. Counting keeps the matrix of 150 x 150 counts alone, whatever the number of images. A run on a
thousand labelled images takes as long as one on ten, as images are read from disk when they are needed. Two processes
of one thread each take two thirds of the time of one.

## The floor of a step

The operations of a DDeP step are the encoder's forward pass and the decoder's forward and backward pass; "share of the
matrix rate" is the time that these would take as products of large matrices, measured in the same run, divided by the
time of the step. EfficientNet's depthwise convolutions do a few operations per value and are bound by memory.

What was done, and what each gave (ResNet-50, Lite0 and TransUNet on two cores with AVX-512 and AMX, each against the
step before it; single runs):

| change | faster |
|---|---|
| no concatenation of skips: two convolutions are added; a frozen encoder's features get no gradient | 1.08 to 1.17 |
| the frozen encoder's BatchNorms are folded into its convolutions | 1.02 to 1.15 |
| malloc keeps freed memory, so that the system does not clear it anew in each step | 1.06 to 1.3 |
| bf16 where the CPU has AMX | 2 to 2.5 |

In fine-tuning the encoder has gradients too. Those of depthwise convolutions in bf16 have no fast kernels for 5x5 and
larger weights, nor for inputs with a stride: larger kernels are covered with 3x3 ones, and strided inputs take their
gradient in float32 (`ddep_hub/utils/depthwise.py`). What that gains with EfficientNet-Lite0 is in the table above.

Tried and left out: transparent huge pages (no gain), bilinear upsampling as a transposed convolution (no gain), the
encoder compiled by inductor with its weights frozen (its forward pass is 1.2 to 1.4 times as fast again, after 10 s of
compiling by a C++ compiler; `--torch_compile` compiles all of the step), and computing the decoder's norms,
activations and upsampling again in the backward pass (a step of Lite0 and of TransUNet needs 17 to 20 % less memory,
one of ResNet-50 no less: still short of the goal). Noise in the input changes the encoder's features, so they cannot
be reused over several draws.

## ImageNet-21k, on paper

Not run. One image of 224 px takes 88.3 GFLOP (TransUNet 1x, [CSV](../benchmarks/pretraining_cost.csv)); 100 epochs of
14.2 million images take 125 EFLOP. At an assumed 300 TFLOP/s, a third of an H100's nominal bf16 rate:

| GPUs | hours | images/s | cores that read (2.3 ms an image) | price at an assumed 2.5 $ per GPU hour |
|---|---|---|---|---|
| 1 | 116 | 3,400 | 8 | 290 $ |
| 8 | 15 | 27,000 | 63 | 290 $ |
| 64 | 1.8 | 217,000 | 500 | 290 $ |

The first bottleneck is reading: at 100 KB an image, 64 GPUs take 22 GB/s. Store the images as shards on local disks,
scaled to a shorter side of 256 px, with 8 workers a GPU and `shuffle_window` as in [pretraining](pretraining.md)."""
