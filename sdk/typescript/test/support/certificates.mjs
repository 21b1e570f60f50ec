// Makes a CA and a leaf certificate for one test run, in plain DER (RFC 5280, X.690), because Node
// can sign but not issue.
import { generateKeyPairSync, randomBytes, sign } from "node:crypto";

const OID = {
  commonName: [0x55, 0x04, 0x03],
  ecdsaWithSha256: [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
  keyUsage: [0x55, 0x1d, 0x0f],
  subjectAltName: [0x55, 0x1d, 0x11],
  basicConstraints: [0x55, 0x1d, 0x13],
  extendedKeyUsage: [0x55, 0x1d, 0x25],
  serverAuth: [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01],
};
const DAY_MS = 86_400_000;

/** Issues a certificate for `host`; answers the CA's and the leaf's PEM and the leaf's key. */
export function issue(host) {
  const root = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const leaf = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const issuer = "Test upstream root";
  const ca = certificate(issuer, issuer, root.publicKey, root.privateKey, [
    extension(OID.basicConstraints, true, sequence(der(0x01, [0xff]))),
    extension(OID.keyUsage, true, der(0x03, [0x01, 0x06])),
  ]);
  const cert = certificate(issuer, host, leaf.publicKey, root.privateKey, [
    extension(OID.subjectAltName, false, sequence(der(0x82, Buffer.from(host, "latin1")))),
    extension(OID.keyUsage, true, der(0x03, [0x07, 0x80])),
    extension(OID.extendedKeyUsage, false, sequence(der(0x06, OID.serverAuth))),
  ]);
  return { ca, cert, key: leaf.privateKey.export({ type: "pkcs8", format: "pem" }) };
}

function certificate(issuer, subject, publicKey, signingKey, extensions) {
  const algorithm = sequence(der(0x06, OID.ecdsaWithSha256));
  const body = sequence(
    der(0xa0, der(0x02, [2])),
    der(0x02, [0x01, ...randomBytes(8)]),
    algorithm,
    name(issuer),
    sequence(utcTime(Date.now() - DAY_MS), utcTime(Date.now() + DAY_MS)),
    name(subject),
    publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, sequence(...extensions)),
  );
  const whole = sequence(body, algorithm, der(0x03, [0], sign("sha256", body, signingKey)));
  const lines = whole.toString("base64").match(/.{1,64}/g).join("\n");
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}

function extension(oid, critical, value) {
  const flag = critical ? [der(0x01, [0xff])] : [];
  return sequence(der(0x06, oid), ...flag, der(0x04, value));
}

function name(text) {
  const value = der(0x0c, Buffer.from(text, "utf8"));
  return sequence(der(0x31, sequence(der(0x06, OID.commonName), value)));
}

function utcTime(ms) {
  const digits = new Date(ms).toISOString().replace(/\D/g, "").slice(2, 14);
  return der(0x17, Buffer.from(`${digits}Z`, "latin1"));
}

function sequence(...parts) {
  return der(0x30, ...parts);
}

function der(tag, ...parts) {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const { length } = content;
  const prefix =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...prefix]), content]);
}
