"""Makes an authority and a certificate of it for 127.0.0.1: certificates.py DIR writes ca.pem and server.pem there."""
import datetime, ipaddress, pathlib, sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DIR = pathlib.Path(sys.argv[1])
NOW = datetime.datetime.now(datetime.timezone.utc)


def named(name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def made(name, key, issuer, signer, *extensions):
    builder = (x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer))
               .public_key(key.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(NOW - datetime.timedelta(days=1)).not_valid_after(NOW + datetime.timedelta(days=1)))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
(DIR / "ca.pem").write_bytes(made("test authority", authority, "test authority", authority,
                                  (x509.BasicConstraints(True, None), True), (usage, True)))
home = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
(DIR / "server.pem").write_bytes(made("127.0.0.1", own, "test authority", authority,
                                      (x509.BasicConstraints(False, None), True), (home, False)) + key)
