"""What goes from one site to the next, and the record by which both can check it.

package ── ledger ── signing          a folder of a few files; a line a stage; whose line it is
   ├────── results, card              scores over patients, and the page that says what this is
   └────── seal, verify               the last thing a stage does, the first thing the next site does
gate                                  whether a stage's result is to be trusted
"""
