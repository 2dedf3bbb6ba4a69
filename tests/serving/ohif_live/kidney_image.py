"""What the tests of annotating know of their images, which show the phantom of an abdomen."""

from lib.samples import phantom

LABELS = ["liver", "kidney_left", "vertebra", "aorta"]
K = 19  # A slice of the left-handed image on which all organs are.


def kidney(organs):
    return organs == phantom.LABELS["kidney_left"]
