"""Identity: tokens and their register, authorisation of connections, certificates and pins.

    token (text) → Register.find → Grant (realm, expiry) → ConnectionAuth of one connection → Realm of each request

Nothing here reads or writes a connection except ``connection_auth``, which answers AUTH.

Spec: BP1-AUT, BP1-PRN, BP1-TLS.
"""
