"""Who dials: connections and coming back, who we are and whom we trust, questions, files up and down.

    client (the face) → uploading · fetching · bulk · downloads · asking → lines → dialling · trust · introducing

What a transfer does with bytes stands in ``transfer``; here is which connection it uses and what happens when that is lost.
"""
