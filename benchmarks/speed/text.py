"""The prose of docs/performance.md around its tables."""

OPENING = """# Performance

<!-- Written by `make benchmark`; the words are in benchmarks/speed/text.py. -->

This page compares the speed and memory of this package with peers, such as segmentation_models.pytorch (*smp*), or
with its own lower bound. Each row gives the median ratio, with quartiles, over rounds that alternate between the two
on one machine: above 1, this package is faster. For memory, the ratio is the peer's peak divided by this package's.
Rows without quartiles are from one measurement; whole pretraining jobs are run twice. On a GPU, only
[three variants of one step](../benchmarks/results/gpu/README.md) have been measured.
[The floor of a step](#the-floor-of-a-step) explains the *share of the matrix rate*.

`make benchmark` repeats all measurements in 10 to 20 minutes on two cores, writes the CSV files of this kind of CPU in
`benchmarks/speed/results/` and this page, and marks rows that fell by more than 10% or are missing.

On CPUs with AMX or AVX512_BF16, `--mixed_precision auto` trains in bf16, so steps are measured in bf16 and in float32;
peers run in float32, as in their own examples."""

# Why a line is below its goal: the first entry whose words are all in the line.
NOTES = {
    ("DDeP step", "TransUNet", "float32"): (
        "Half of the step's operations are the frozen encoder's forward pass, which both sides need: products of "
        "large matrices that already run at the device's rate. On AVX2, what is left is less than the spread."
    ),
    ("share of the matrix rate", "bf16"): (
        "Matrix products are two to three times as fast as in float32, but norms, activations, resampling and the "
        "loss move as many values as before and become the bottleneck."
    ),
    ("memory of a DDeP step",): (
        "The decoder's blocks at full and half resolution hold most of the values that a step stores, and a DeP step "
        "stores them too. Recomputing norms, activations and upsampling saves too little, see below."
    ),
    ("DDeP step", "ResNet-50"): (
        "Without AVX-512 and AMX, the convolutions themselves, which both sides need, take most of the time: two "
        "thirds of the matrix rate are reached. With them, a step of 8 images is 1.4 to 1.6 times as fast as the "
        "peers'."
    ),
    ("fine-tuning step", "UPerNet"): (
        "UPerNet does a third of its operations in one 3x3 convolution of 1024 channels at stride 4, and most others "
        "in ConvNeXt's linear layers. These large products run at 1.5 times the rate (one thread, AMD EPYC) of "
        "ResNet-50's many smaller convolutions and the bottleneck's at stride 32, which are four fifths of this "
        "U-Net's operations. The comparison is of time per operation: a step of UPerNet has 2.8 times the operations."
    ),
    ("fine-tuning step", "SegFormer"): (
        "As for UPerNet: two thirds of the forward pass are one product, from 3072 to 768 channels at stride 4."
    ),
    ("whole pretraining job",): (
        "With two cores, the worker that decodes images takes about 2.3 ms of one core per image from the step. The "
        "faster the step, the larger that share."
    ),
    ("memory of prediction",): (
        "The network at 512x512 takes half of it. The rest is the probabilities of the rows of one window, 19 "
        "classes in float32, the image, the class ids, and freed memory that is kept because that is faster. The "
        "probabilities of the whole image are not held."
    ),
    ("confusion matrix", "150 classes"): (
        "Both sides count pairs of class ids with one `bincount`; this package saves the passes over the pixels "
        "before it, which are a smaller share of the time on this CPU."
    ),
    ("loading", "500x375"): (
        "Such a photograph is decoded whole and scaled by torchvision, as fast as libjpeg-turbo allows; the rest is "
        "reading the header, 0.1 ms."
    ),
    ("loading", "2048x1024"): (
        "Most of the time goes into Huffman decoding, which a reduced scale does not shorten; the ratio grows with "
        "the image's size relative to the crop."
    ),
    ("from_pretrained", "load_file"): (
        "Reading takes a tenth of the time. The rest builds the model on the meta device, without memory: timm runs "
        "its initialisers, and the hybrid's ResNet once, to learn the size of its output."
    ),
    ("loading", "PNG"): "zlib, and scaling three equal channels where the peer scales one.",
}

CLOSING = """## What the growth says

With convolutional encoders, nothing grows faster than the number of pixels. With attention, time does: ViT-S/14 takes
more than four times as long for twice the side length. The cost of wider decoders grows with up to the square of their
width, as for any convolution. Scoring keeps only the 150 x 150 confusion matrix, whatever the number of images. A run
on a thousand labelled images takes about as long as one on ten, because images are read from disk when they are
needed. Two processes with one thread each take two thirds of the time of one.

## The floor of a step

A DDeP step is the encoder's forward pass and the decoder's forward and backward pass. The *share of the matrix rate*
is the time that these operations would take as products of large matrices (or as plain convolutions, where those are
faster), measured in the same run, divided by the time of the step. EfficientNet's depthwise convolutions do only a few
operations per value and are memory-bound.

These changes made a step faster (ResNet-50, Lite0 and TransUNet on two cores with AVX-512 and AMX, each relative to
the change before it; single runs):

| change | faster |
|---|---|
| skips added as a second convolution, not concatenated; a frozen encoder's features get no gradient | 1.08 to 1.17 |
| the frozen encoder's BatchNorms are folded into its convolutions | 1.02 to 1.15 |
| malloc keeps freed memory, so that the system does not clear it again in each step | 1.06 to 1.3 |
| bf16 on CPUs with AMX | 2 to 2.5 |
| bf16 on CPUs with AVX512_BF16 (AMD EPYC) | 1.6 to 2 |

In fine-tuning, the encoder needs gradients too. In bf16, depthwise convolutions have no fast gradient kernels for
weights of 5x5 and larger, nor for strides. Larger weights are therefore covered with 3x3 ones, and the input gradients
of strided convolutions are computed in float32 (`ddep_hub/utils/depthwise.py`). The first table shows the gain with
EfficientNet-Lite0.

These changes were tried and rejected:

- transparent huge pages: no gain;
- bilinear upsampling as a transposed convolution: no gain;
- on AVX2, gradients of weights in contiguous instead of channels_last tensors: on one thread, a step of ResNet-50 and
  TransUNet is 1.2 times as fast, but on two only 1.05, Lite0's is slower, and memory grows by up to a third;
- on AVX2, the whole network in contiguous format, on two threads: ResNet-50 1.08 and 1.07, TransUNet 1.10 and 0.96,
  Lite0 0.82 and 0.94 times as fast, on two days;
- compiling the encoder with inductor, weights frozen: its forward pass is another 1.2 to 1.4 times as fast, after 10 s
  of compiling with a C++ compiler; `--torch_compile` compiles the whole step;
- recomputing the decoder's norms, activations and upsampling in the backward pass: a step of Lite0 and of TransUNet
  needs 17 to 20% less memory, one of ResNet-50 no less, which is still short of the goal.

The encoder's features cannot be reused for several noise draws, because noise in the input changes them.

## ImageNet-21k, on paper

This has not been run. One image of 224 px takes 88.3 GFLOP (TransUNet 1x, [CSV](../benchmarks/pretraining_cost.csv));
100 epochs of 14.2 million images take 127 EFLOP. At an assumed 100 TFLOP/s, a tenth of an H100's nominal bf16 rate:

| GPUs | hours | images/s | cores for reading (2.3 ms per image) | price at an assumed $2.50 per GPU hour |
|---|---|---|---|---|
| 1 | 352 | 1,130 | 3 | $880 |
| 8 | 44 | 9,100 | 21 | $880 |
| 64 | 5.5 | 72,000 | 167 | $880 |

The first bottleneck is reading: at 100 KB per image, 64 GPUs need 7 GB/s. Store the images as shards on local disks,
scaled to a shorter side of 256 px, and use 3 or more workers per GPU and
[`shuffle_window`](data.md#unlabelled-images)."""
