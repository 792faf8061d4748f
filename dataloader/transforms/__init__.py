"""How images and labels are resized, cropped and augmented."""
