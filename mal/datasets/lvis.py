"""LVIS: COCO's JSON, with the image's place given by its address instead of a file name."""


def path_from_address(address: str) -> str:
    """Image path relative to a folder that holds COCO's splits side by side.

    >>> path_from_address("http://images.cocodataset.org/train2017/000000391895.jpg")
    'train2017/000000391895.jpg'
    """
    return "/".join(part for part in address.split("?")[0].split("/")[-2:] if part)
