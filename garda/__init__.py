"""garda: continual unsupervised domain adaptation for medical image segmentation, without keeping an image."""

__version__ = "0.2.0"
