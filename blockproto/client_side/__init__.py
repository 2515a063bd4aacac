"""The client's side: connections and coming back, who we are and whom we trust, questions, files up and down.

    client (the face) → upload · upload_many · download · download_many · request → connections → dial · trust · authenticate

What a transfer does with bytes stands in ``transfer``; here is which connection it uses and what happens when that is lost.
"""
