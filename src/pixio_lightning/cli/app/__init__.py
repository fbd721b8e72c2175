"""`pixio app`: a page in the browser that shows what runs make of one's own pictures.

It computes nothing itself: tabs call what `predict`, `picture` and `write` of the loaded modules
do, and show a head by what it writes, never by its class.
"""
