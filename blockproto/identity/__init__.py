"""Who is asking: tokens and the list of them, admission of a connection, certificates and pins.

    token (text) → Register.find → Grant (realm, until when) → Admission of one connection → Realm of each request

Nothing here reads or writes a connection except ``admission``, which answers AUTH.

Spec: BP1-AUT, BP1-PRN, BP1-TLS.
"""
