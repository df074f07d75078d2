"""Text parts of pipelines, as transformers saves them."""

import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By family, made when first asked for."""
    import tiny_text

    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny_text.folder_of(family, tmp_path_factory.mktemp("text") / family)
        return made[family]

    return get
