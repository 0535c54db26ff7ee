"""Tracks on disk to stems (S, C, T).

`tracks` finds and measures what lies in a folder, `cache` says where that is remembered, `extracts`
hands out pieces of it, and `musdb` and `folder` say which tracks belong to which subset.
"""

from demucs_lightning.data.extracts import Extracts, collate, normalized
from demucs_lightning.data.folder import FolderTracks
from demucs_lightning.data.musdb import Musdb7s, MusdbHQ
from demucs_lightning.data.tracks import Track

__all__ = ["Extracts", "FolderTracks", "Musdb7s", "MusdbHQ", "Track", "collate", "normalized"]
