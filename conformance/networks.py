"""The networks that sweep.py goes through, as small and on as small inputs as their families allow.

A row is a family, where the network comes from (`torchvision:NAME`, `timm:NAME`, `own:NAME` for a class of this file,
`keras:NAME`), the shape of its input without the batch axis, and arguments of its constructor.
"""

import collections

Row = collections.namedtuple("Row", "family name shape arguments", defaults=({},))


def square(size):
    return (3, size, size)


TORCH = [
    Row("AlexNet", "torchvision:alexnet", square(224)),
    Row("VGG", "torchvision:vgg11", square(224)),
    Row("ResNet", "torchvision:resnet18", square(96)),
    Row("ResNet", "torchvision:resnet50", square(64)),
    Row("ResNet", "timm:resnet26d", square(96)),
    Row("ResNet", "timm:ecaresnet26t", square(96)),
    Row("ResNeXt", "torchvision:resnext50_32x4d", square(64)),
    Row("SE-ResNet", "timm:legacy_seresnet18", square(96)),
    Row("SE-ResNet", "timm:seresnext26d_32x4d", square(96)),
    Row("WideResNet", "torchvision:wide_resnet50_2", square(64)),
    Row("ResNet relatives", "timm:res2net50_14w_8s", square(64)),
    Row("ResNet relatives", "timm:resnest14d", square(96)),
    Row("ResNet relatives", "timm:skresnet18", square(96)),
    Row("ResNet relatives", "timm:gernet_s", square(96)),
    Row("ResNet relatives", "timm:tresnet_m", square(96)),
    Row("DenseNet", "torchvision:densenet121", square(96)),
    Row("DenseNet", "timm:rdnet_tiny", square(96)),
    Row("Inception v3", "torchvision:inception_v3", square(107)),
    Row("Inception v4", "timm:inception_v4", square(107)),
    Row("GoogLeNet", "torchvision:googlenet", square(96), {"aux_logits": False, "init_weights": False}),
    Row("Xception", "timm:legacy_xception", square(96)),
    Row("Xception", "timm:xception41", square(96)),
    Row("MobileNet v1", "timm:mobilenetv1_100", square(96)),
    Row("MobileNet v2", "torchvision:mobilenet_v2", square(96)),
    Row("MobileNet v3", "torchvision:mobilenet_v3_small", square(96)),
    Row("MobileNet v4", "timm:mobilenetv4_conv_small", square(96)),
    Row("MobileNet v4", "timm:mobilenetv4_hybrid_medium", square(96)),
    Row("EfficientNet", "torchvision:efficientnet_b0", square(96)),
    Row("EfficientNet", "timm:tf_efficientnet_b0", square(96)),
    Row("EfficientNet v2", "timm:efficientnetv2_rw_t", square(96)),
    Row("EfficientNet-lite", "timm:efficientnet_lite0", square(96)),
    Row("MnasNet", "torchvision:mnasnet0_5", square(96)),
    Row("MnasNet", "timm:semnasnet_075", square(96)),
    Row("MnasNet relatives", "timm:mixnet_s", square(96)),
    Row("MnasNet relatives", "timm:lcnet_050", square(96)),
    Row("MnasNet relatives", "timm:hardcorenas_a", square(96)),
    Row("MnasNet relatives", "timm:rexnet_100", square(96)),
    Row("GhostNet", "timm:ghostnet_050", square(96)),
    Row("GhostNet", "timm:ghostnetv2_100", square(96)),
    Row("ShuffleNet", "torchvision:shufflenet_v2_x0_5", square(96)),
    Row("SqueezeNet", "torchvision:squeezenet1_1", square(96)),
    Row("RegNet", "torchvision:regnet_x_400mf", square(96)),
    Row("RegNet", "torchvision:regnet_y_400mf", square(96)),
    Row("ConvNeXt", "torchvision:convnext_tiny", square(64)),
    Row("ConvNeXt", "timm:convnext_atto", square(96)),
    Row("ConvNeXt v2", "timm:convnextv2_atto", square(96)),
    Row("ConvNeXt relatives", "timm:inception_next_atto", square(96)),
    Row("ConvNeXt relatives", "timm:mambaout_femto", square(96)),
    Row("ConvNeXt relatives", "timm:starnet_s1", square(96)),
    Row("NFNet", "timm:nf_regnet_b0", square(96)),
    Row("NFNet", "timm:eca_nfnet_l0", square(96)),
    Row("NFNet", "timm:dm_nfnet_f0", square(64)),
    Row("RepVGG", "timm:repvgg_a0", square(96)),
    Row("RepVGG", "timm:mobileone_s0", square(96)),
    Row("RepVGG", "timm:repvit_m0_9", square(96)),
    Row("HRNet", "timm:hrnet_w18_small", square(96)),
    Row("DLA", "timm:dla46_c", square(96)),
    Row("DPN", "timm:dpn48b", square(96)),
    Row("SelecSLS", "timm:selecsls42", square(96)),
    Row("VoVNet", "timm:ese_vovnet19b_dw", square(96)),
    Row("HGNet", "timm:hgnetv2_b0", square(96)),
    Row("DarkNet", "timm:darknet53", square(64)),
    Row("DarkNet", "timm:cs3darknet_s", square(96)),
    Row("DarkNet", "timm:cspdarknet53", square(64)),
    Row("ViT", "torchvision:vit_b_16", square(64), {"image_size": 64}),
    Row("ViT", "timm:vit_tiny_patch16_224", square(96), {"img_size": 96}),
    Row("ViT", "timm:vit_relpos_small_patch16_224", square(96), {"img_size": 96}),
    Row("DeiT", "timm:deit_tiny_patch16_224", square(96), {"img_size": 96}),
    Row("DeiT", "timm:deit_tiny_distilled_patch16_224", square(96), {"img_size": 96}),
    Row("DeiT", "timm:deit3_small_patch16_224", square(96), {"img_size": 96}),
    Row("BEiT", "timm:beit_base_patch16_224", square(64), {"img_size": 64, "depth": 4}),
    Row("Swin", "torchvision:swin_t", square(96)),
    Row("Swin", "timm:swin_tiny_patch4_window7_224", square(112), {"img_size": 112}),
    Row("Swin v2", "torchvision:swin_v2_t", square(96)),
    Row("Swin v2", "timm:swinv2_tiny_window8_256", square(128), {"img_size": 128}),
    Row("Swin v2", "timm:swinv2_cr_tiny_224", square(112), {"img_size": 112}),
    Row("CaiT", "timm:cait_xxs24_224", square(96), {"img_size": 96}),
    Row("MLP-Mixer", "timm:mixer_s32_224", square(128), {"img_size": 128}),
    Row("MLP-Mixer", "timm:gmlp_ti16_224", square(96), {"img_size": 96}),
    Row("MLP-Mixer", "timm:resmlp_12_224", square(96), {"img_size": 96}),
    Row("PoolFormer", "timm:poolformer_s12", square(96)),
    Row("PoolFormer", "timm:poolformerv2_s12", square(96)),
    Row("CoAtNet", "timm:coatnet_nano_rw_224", square(96), {"img_size": 96}),
    Row("CoAtNet", "timm:coatnet_rmlp_nano_rw_224", square(96), {"img_size": 96}),
    Row("MaxViT", "torchvision:maxvit_t", square(224)),
    Row("MaxViT", "timm:maxvit_rmlp_pico_rw_256", square(128), {"img_size": 128}),
    Row("EVA", "timm:eva02_tiny_patch14_224", square(98), {"img_size": 98}),
    Row("FastViT", "timm:fastvit_t8", square(96)),
    Row("FastViT", "timm:fastvit_sa12", square(96)),
    Row("MobileViT", "timm:mobilevit_xxs", square(96)),
    Row("MobileViT", "timm:mobilevitv2_050", square(96)),
    Row("Hybrids", "timm:efficientformer_l1", square(224)),
    Row("Hybrids", "timm:edgenext_xx_small", square(96)),
    Row("Hybrids", "timm:levit_128s", square(224)),
    Row("Hybrids", "timm:efficientvit_b0", square(96)),
    Row("Hybrids", "timm:efficientvit_m0", square(224)),
    Row("Hybrids", "timm:swiftformer_xs", square(96)),
    Row("Hybrids", "timm:tiny_vit_5m_224", square(224)),
    Row("Hybrids", "timm:botnet26t_256", square(256)),
    Row("Hybrids", "timm:halonet26t", square(256)),
    Row("Hybrids", "timm:lambda_resnet26t", square(96)),
    Row("Hybrids", "timm:visformer_tiny", square(96), {"img_size": 96}),
    Row("Transformers", "timm:mvitv2_tiny", square(96), {"img_size": 96}),
    Row("Transformers", "timm:pit_ti_224", square(96), {"img_size": 96}),
    Row("Transformers", "timm:xcit_nano_12_p16_224", square(96), {"img_size": 96}),
    Row("Transformers", "timm:twins_svt_small", square(96), {"img_size": 96}),
    Row("Transformers", "timm:crossvit_tiny_240", square(240)),
    Row("Transformers", "timm:volo_d1_224", square(96), {"img_size": 96}),
    Row("Transformers", "timm:tnt_s_patch16_224", square(96), {"img_size": 96}),
    Row("Transformers", "timm:coat_tiny", square(96), {"img_size": 96}),
    Row("Transformers", "timm:davit_tiny", square(96)),
    Row("Transformers", "timm:nest_tiny", square(128), {"img_size": 128}),
    Row("Transformers", "timm:focalnet_tiny_srf", square(96)),
    Row("Transformers", "timm:gcvit_xxtiny", square(96), {"img_size": 96}),
    Row("Transformers", "timm:hiera_tiny_224", square(96), {"img_size": (96, 96)}),
    Row("Transformers", "timm:pvt_v2_b0", square(96)),
    Row("Transformers", "timm:convit_tiny", square(96), {"img_size": 96}),
    Row("Transformers", "timm:sequencer2d_s", square(96)),
    Row("Segmentation", "torchvision:fcn_resnet50", square(64), {"weights_backbone": None}),
    Row("Segmentation", "torchvision:deeplabv3_mobilenet_v3_large", square(96), {"weights_backbone": None}),
    Row("Segmentation", "torchvision:lraspp_mobilenet_v3_large", square(96), {"weights_backbone": None}),
    Row("Segmentation", "own:unet", square(64)),
    Row("Segmentation", "own:unet", square(64), {"bilinear": True}),
    Row("Detection", "own:ssd", square(128)),
    Row("Detection", "own:retinanet", square(96)),
    Row("Detection", "own:yolo", square(96)),
    Row("Detection", "own:yolo", square(96), {"anchors": False}),
    Row("Signals", "own:signal", (2, 256)),
    Row("Signals", "own:recurrent", (40, 12), {"kind": "LSTM"}),
    Row("Signals", "own:recurrent", (40, 12), {"kind": "GRU"}),
    Row("Signals", "own:recurrent", (40, 12), {"kind": "RNN"}),
    Row("Signals", "own:attention", (24, 32)),
    Row("Volumes", "torchvision:r3d_18", (3, 8, 48, 48)),
    Row("Volumes", "torchvision:mc3_18", (3, 8, 48, 48)),
    Row("Volumes", "torchvision:r2plus1d_18", (3, 8, 48, 48)),
    Row("Volumes", "torchvision:s3d", (3, 16, 224, 224)),
    Row("Volumes", "torchvision:swin3d_t", (3, 8, 64, 64)),
    Row("Volumes", "own:volume", (1, 24, 24, 24)),
]



def those(family, *names):
    """Rows of TORCH under another family."""
    found = [row._replace(family=family) for row in TORCH if row.name in names]
    assert {row.name for row in found} == set(names)
    return found


# Networks that take batches and inputs of any size, and networks that take batches alone.
SIZES = those(
    "Any size", "torchvision:resnet18", "torchvision:densenet121", "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1", "timm:tf_efficientnet_b0", "timm:convnext_atto",
    "timm:convnextv2_atto", "timm:poolformer_s12", "timm:fastvit_t8", "torchvision:fcn_resnet50",
    "torchvision:deeplabv3_mobilenet_v3_large", "own:unet", "own:ssd", "own:retinanet", "own:yolo",
    "own:recurrent", "own:attention", "torchvision:r3d_18", "own:volume",
)  # fmt: skip
BATCHES = those(
    "Any batch", "torchvision:vit_b_16", "torchvision:swin_t", "torchvision:swin_v2_t", "torchvision:maxvit_t",
    "timm:vit_tiny_patch16_224", "timm:eva02_tiny_patch14_224", "timm:cait_xxs24_224", "timm:mobilevit_xxs",
    "timm:coatnet_nano_rw_224", "timm:mixer_s32_224",
)  # fmt: skip
HALF = those(
    "Float16", "torchvision:resnet18", "torchvision:mobilenet_v2", "timm:convnext_atto", "timm:vit_tiny_patch16_224"
)
QUANTIZED = those("Quantized", "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:squeezenet1_1")

# Of the applications of Keras: the name, and the length of a picture's sides.
APPLICATIONS = {
    "VGG16": 64, "ResNet50": 64, "ResNet50V2": 64, "Xception": 96, "InceptionV3": 96, "InceptionResNetV2": 96,
    "MobileNet": 96, "MobileNetV2": 96, "MobileNetV3Small": 96, "DenseNet121": 96, "NASNetMobile": 96,
    "EfficientNetB0": 96, "EfficientNetV2B0": 96, "ConvNeXtTiny": 64,
}  # fmt: skip
KERAS = [Row("Keras 3", f"keras:{name}", (size, size, 3)) for name, size in APPLICATIONS.items()]
KERAS2 = [
    Row("Keras 2", f"tf_keras:{name}", (size, size, 3))
    for name, size in {**APPLICATIONS, "RegNetX002": 96, "ResNetRS50": 64}.items()
]


def title(row):
    """A name that no other row has."""
    return row.name + "".join(f" {key}={value}" for key, value in row.arguments.items() if "_" not in key and key != "depth")


def make(row):
    """A network of PyTorch with the weights that its library gives it at random, whose first output is explained."""
    import torch

    library, _, name = row.name.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **row.arguments)
    if library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name, weights=None, **row.arguments)
        return FirstValue(network) if "segmentation" in type(network).__module__ else network
    return OWN[name](**row.arguments)


try:
    import torch
    from torch import nn
except ImportError:  # the environment of Keras has no PyTorch
    pass
else:

    class FirstValue(nn.Module):
        """Of a network that gives a dictionary, its first entry."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return next(iter(self.network(x).values()))

    def convolution(inputs, outputs, kernel=3, stride=1, activation=nn.ReLU):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), activation()
        )

    class UNet(nn.Module):
        """Down and up again, with transposed convolutions or bilinear resizing, and skips that are cropped or padded."""

        def __init__(self, bilinear=False, widths=(8, 16, 32)):
            super().__init__()
            ends = [3, *widths]
            self.down = nn.ModuleList(
                nn.Sequential(convolution(a, b), convolution(b, b)) for a, b in zip(ends, ends[1:])
            )
            self.up, self.join = nn.ModuleList(), nn.ModuleList()
            for small, large in zip(widths[-2::-1], widths[:0:-1]):
                if bilinear:
                    up = nn.Sequential(
                        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(large, small, 1)
                    )
                else:
                    up = nn.ConvTranspose2d(large, small, 2, stride=2)
                self.up.append(up)
                self.join.append(nn.Sequential(convolution(2 * small, small), convolution(small, small)))
            self.classes = nn.Conv2d(widths[0], 4, 1)

        def forward(self, x):
            skips = []
            for index, down in enumerate(self.down):
                x = down(x if index == 0 else nn.functional.max_pool2d(x, 2))
                skips.append(x)
            for up, join, skip in zip(self.up, self.join, skips[-2::-1]):
                x = up(x)
                rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
                x = nn.functional.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
                x = join(torch.cat([skip, x], 1))
            return self.classes(x)

    def scores_first(outputs):
        return outputs["cls_logits"].transpose(1, 2), outputs["bbox_regression"]

    class Detector(nn.Module):
        """Backbone and heads of a detector of torchvision, before its boxes are decoded and chosen."""

        def __init__(self, network):
            super().__init__()
            self.backbone, self.head = network.backbone, network.head

        def forward(self, x):
            return scores_first(self.head(list(self.backbone(x).values())))

    def ssd():
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        return Detector(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21))

    def retinanet():
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4])
        return Detector(RetinaNet(backbone, num_classes=10))

    class Bottleneck(nn.Module):
        """A part of the channels goes through residual blocks, and all come together again."""

        def __init__(self, channels, blocks=1):
            super().__init__()
            half = channels // 2
            self.into = convolution(channels, channels, 1, activation=nn.SiLU)
            self.blocks = nn.ModuleList(
                nn.Sequential(convolution(half, half, activation=nn.SiLU), convolution(half, half, activation=nn.SiLU))
                for _ in range(blocks)
            )
            self.out = convolution((2 + blocks) * half, channels, 1, activation=nn.SiLU)

        def forward(self, x):
            parts = list(self.into(x).chunk(2, 1))
            for block in self.blocks:
                parts.append(parts[-1] + block(parts[-1]))
            return self.out(torch.cat(parts, 1))

    class Yolo(nn.Module):
        """A one-stage detector with a pyramid, whose boxes are decoded but not chosen: from anchors, or from distances."""

        def __init__(self, anchors=True, width=8, classes=5, bins=4):
            super().__init__()
            self.anchors, self.classes, self.bins = anchors, classes, bins
            w = [width, 2 * width, 4 * width, 8 * width]
            self.stem = convolution(3, w[0], 3, 2, nn.SiLU)
            self.stages = nn.ModuleList(
                nn.Sequential(convolution(a, b, 3, 2, nn.SiLU), Bottleneck(b)) for a, b in zip(w, w[1:])
            )
            self.narrow, self.wide = convolution(w[3], w[3] // 2, 1), convolution(2 * w[3], w[3], 1)
            self.upward = Bottleneck(w[3] + w[2])
            self.head = nn.ModuleList()
            each = 3 * (5 + classes) if anchors else 4 * bins + classes
            for channels in (w[3] + w[2], w[3]):
                self.head.append(nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, each, 1)))

        def forward(self, x):
            x, features = self.stem(x), []
            for stage in self.stages:
                x = stage(x)
                features.append(x)
            x = self.narrow(x)  # spatial pyramid pooling: three maxima, one after the other
            pools = [x]
            for _ in range(3):
                pools.append(nn.functional.max_pool2d(pools[-1], 5, 1, 2))
            deep = self.wide(torch.cat(pools, 1))
            upsampled = nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
            maps = [self.upward(torch.cat([upsampled, features[-2]], 1)), deep]
            decode = self.from_anchors if self.anchors else self.from_distances
            found = [decode(head(x), 2.0 ** (3 + level)) for level, (head, x) in enumerate(zip(self.head, maps))]
            return torch.cat(found, 1).transpose(1, 2)

        def cells(self, x):
            rows, columns = torch.arange(x.shape[-2]), torch.arange(x.shape[-1])
            y, x = torch.meshgrid(rows.to(x), columns.to(x), indexing="ij")
            return torch.stack([x, y], -1)

        def from_anchors(self, x, stride):
            batch, _, height, width = x.shape
            x = x.view(batch, 3, 5 + self.classes, height, width).permute(0, 1, 3, 4, 2).contiguous()
            place, size, scores = x.sigmoid().split((2, 2, self.classes + 1), 4)
            place = (place * 2 - 0.5 + self.cells(x[..., 0])) * stride
            anchors = torch.tensor([[1.0, 1.5], [2.0, 1.0], [2.5, 3.0]]).to(x) * stride
            size = (size * 2) ** 2 * anchors.view(1, 3, 1, 1, 2)
            return torch.cat([place, size, scores], 4).view(batch, -1, 5 + self.classes)

        def from_distances(self, x, stride):
            batch = x.shape[0]
            cells = self.cells(x).view(1, -1, 2) + 0.5
            boxes, scores = x.flatten(2).split((4 * self.bins, self.classes), 1)
            chances = boxes.view(batch, 4, self.bins, -1).transpose(2, 1).softmax(1)
            weights = torch.arange(self.bins).to(x).view(1, -1, 1, 1)
            near, far = (chances * weights).sum(1).transpose(1, 2).chunk(2, 2)
            low, high = cells - near, cells + far
            return torch.cat([(low + high) / 2 * stride, (high - low) * stride, scores.sigmoid().transpose(1, 2)], 2)

    class Signal(nn.Module):
        """Convolutions along one axis, dilated and in groups, and pools of both kinds."""

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv1d(2, 16, 7, stride=2, padding=3), nn.BatchNorm1d(16), nn.ELU(), nn.MaxPool1d(2),
                nn.Conv1d(16, 32, 3, padding=2, dilation=2, groups=4), nn.GroupNorm(4, 32), nn.GELU(),
                nn.AvgPool1d(3, 2, ceil_mode=True), nn.AdaptiveAvgPool1d(8),
                nn.Conv1d(32, 32, 5, padding="same", padding_mode="reflect"), nn.InstanceNorm1d(32, affine=True),
                nn.PReLU(32), nn.Flatten(), nn.Linear(256, 6),
            )

        def forward(self, x):
            return self.layers(x)

    class Recurrent(nn.Module):
        """Two layers of recurrence in both directions, and the mean and last of what they say."""

        def __init__(self, kind):
            super().__init__()
            self.layers = getattr(nn, kind)(12, 16, num_layers=2, batch_first=True, bidirectional=True)
            self.classes = nn.Linear(64, 5)

        def forward(self, x):
            states, _ = self.layers(x)
            return self.classes(torch.cat([states.mean(1), states[:, -1]], 1))

    class Attention(nn.Module):
        """PyTorch's own encoder of transformers, on a sequence of vectors."""

        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.classes = nn.Linear(32, 7)

        def forward(self, x):
            return self.classes(self.layers(x).amax(1))

    class Volume(nn.Module):
        """A small encoder and decoder of volumes."""

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.LeakyReLU(0.1), nn.MaxPool3d(2),
                nn.Conv3d(8, 16, 3, padding=1, stride=(1, 2, 2)), nn.InstanceNorm3d(16), nn.LeakyReLU(0.1),
                nn.ConvTranspose3d(16, 8, 2, stride=2), nn.Softplus(), nn.AvgPool3d((3, 2, 2), (1, 2, 2), (1, 0, 0)),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False), nn.Conv3d(8, 3, 1),
            )

        def forward(self, x):
            return self.layers(x)

    OWN = {
        "unet": UNet,
        "ssd": ssd,
        "retinanet": retinanet,
        "yolo": Yolo,
        "signal": Signal,
        "recurrent": Recurrent,
        "attention": Attention,
        "volume": Volume,
    }
