"""Medical images: what a volume is, where its voxels lie, how it is sliced into frames, and how images and masks are read and written.
Operations on masks and overlap metrics belong here too; models and prompts do not. This package may import `lib.common`."""
