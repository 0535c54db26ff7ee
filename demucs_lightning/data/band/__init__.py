"""The band that plays the demo songs, from the idea to the mix.

`songwriter` plans songs → `arranger` writes every part as notes → `instruments`, `drums` and
`singer` turn notes into sound → `studio` adds room and balance, and delivers stems. numpy and scipy
only; all chance comes from generators seeded by the plan of a song.
"""
