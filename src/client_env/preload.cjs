// Makes releases of node that know no proxy variables use the proxy of the environment: fetch,
// http and https. Loaded by `--require`; needs nothing but node's own modules. The proxy's
// credential goes to the proxy alone, and a program that cannot be helped is left as it is.
'use strict';

const http = require('node:http');
const https = require('node:https');
const net = require('node:net');
const tls = require('node:tls');

// How long the proxy may take to open a tunnel, in milliseconds.
const CONNECT_TIMEOUT = 30_000;
// The most that is read of a refusal, in bytes, and how long that may take, in milliseconds.
const REFUSAL_LIMIT = 4096;
const REFUSAL_TIMEOUT = 2_000;
const DISPATCHER = Symbol.for('undici.globalDispatcher.1');
const INSTALLED = Symbol.for('oshu-vault.preload');

// Node 24, and 22 from 22.21 on, do this themselves when NODE_USE_ENV_PROXY is set.
function knowsProxies() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  return major >= 24 || (major === 22 && minor >= 21);
}

function variable(name) {
  return process.env[name.toLowerCase()] || process.env[name.toUpperCase()] || '';
}

function readProxy(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return undefined;
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') return undefined;
  const secure = url.protocol === 'https:';
  const user = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
  return {
    secure,
    host: bare(url.hostname),
    port: Number(url.port) || (secure ? 443 : 80),
    authorization: url.username && `Basic ${Buffer.from(user).toString('base64')}`,
  };
}

function bare(host) {
  return host.replace(/^\[|\]$/g, '').replace(/\.$/, '').toLowerCase();
}

function readExempt(text) {
  return text
    .split(/[\s,]+/)
    .filter(Boolean)
    .map((entry) => {
      const [, host, port] = /^(\[.*\]|[^:]*|.*:.*:.*?)(?::(\d+))?$/.exec(entry) || [, entry];
      return { host: bare(host).replace(/^\*?\./, ''), port: port && Number(port) };
    });
}

const exempt = readExempt(variable('NO_PROXY'));
const proxies = {
  'http:': readProxy(variable('HTTP_PROXY') || variable('ALL_PROXY')),
  'https:': readProxy(variable('HTTPS_PROXY') || variable('ALL_PROXY')),
};

// Finds the proxy for a connection; nothing for what is exempt and for the proxy itself.
function proxyFor(protocol, host, port) {
  const proxy = proxies[protocol];
  const name = bare(host);
  const isExempt = ({ host: other, port: only }) =>
    (other === '*' || name === other || name.endsWith(`.${other}`)) && (!only || only === port);
  if (!proxy || exempt.some(isExempt)) return undefined;
  return name === proxy.host && port === proxy.port ? undefined : proxy;
}

function dial(proxy) {
  const { host, port } = proxy;
  if (!proxy.secure) return net.connect({ host, port });
  const servername = net.isIP(host) ? '' : host;
  return tls.connect({ host, port, servername, ALPNProtocols: ['http/1.1'] });
}

function refusal(status, body) {
  let reason = '';
  try {
    reason = JSON.parse(body).message || '';
  } catch {
    // No reason that can be read: the status says enough.
  }
  const error = new Error(`the proxy refused the tunnel: ${status}${reason && ` ${reason}`}`);
  return Object.assign(error, { code: 'ERR_PROXY_TUNNEL', statusCode: status });
}

// Asks the proxy for a tunnel (RFC 9110 §9.3.6); the callback gets an error or a socket.
function openTunnel(proxy, host, port, callback) {
  const name = bare(host);
  const authority = `${net.isIPv6(name) ? `[${name}]` : name}:${port}`;
  const headers = { host: authority };
  if (proxy.authorization) headers['proxy-authorization'] = proxy.authorization;
  const request = http.request({
    method: 'CONNECT',
    path: authority,
    headers,
    createConnection: () => dial(proxy),
  });
  let settled = false;
  const settle = (error, socket) => {
    if (settled) return;
    settled = true;
    callback(error, socket);
  };
  request.once('error', settle);
  request.setTimeout(CONNECT_TIMEOUT, () => {
    request.destroy(Object.assign(new Error('the proxy did not answer'), { code: 'ETIMEDOUT' }));
  });
  request.once('connect', (response, socket, head) => {
    socket.setTimeout(0);
    if (response.statusCode === 200) {
      if (head.length > 0) socket.unshift(head);
      settle(null, socket);
      return;
    }
    let body = head;
    const end = () => settle(refusal(response.statusCode, body.toString()));
    socket.on('error', end).on('close', end);
    socket.setTimeout(REFUSAL_TIMEOUT, () => socket.destroy());
    const length = Math.min(Number(response.headers['content-length']) || 0, REFUSAL_LIMIT);
    const more = (chunk) => {
      body = Buffer.concat([body, chunk]);
      if (body.length >= length) socket.destroy();
    };
    socket.on('data', more);
    more(Buffer.alloc(0));
  });
  request.end();
}

// Routes the connections of all agents of one kind, the default one and those that programs make.
function patchAgents(prototype, protocol) {
  const direct = prototype.createConnection;
  prototype.createConnection = function createConnection(options, callback) {
    const isRequest = typeof options === 'object' && typeof callback === 'function';
    if (!isRequest || options.socketPath) return Reflect.apply(direct, this, arguments);
    const host = options.host || options.hostname || 'localhost';
    const port = Number(options.port) || (protocol === 'https:' ? 443 : 80);
    const proxy = proxyFor(protocol, host, port);
    if (!proxy) return Reflect.apply(direct, this, arguments);
    openTunnel(proxy, host, port, (error, socket) => {
      if (error) callback(error);
      else if (protocol === 'http:') callback(null, socket);
      else callback(null, tls.connect({ ...options, socket }));
    });
    return undefined;
  };
}

// Makes the connections of fetch.
function connectForFetch(options, callback) {
  const { hostname, protocol, localAddress } = options;
  const host = bare(hostname);
  const port = Number(options.port) || (protocol === 'https:' ? 443 : 80);
  const servername = net.isIP(host) ? '' : options.servername || host;
  const finish = (socket, event) => {
    const fail = (error) => callback(error);
    socket.setNoDelay(true);
    socket.once('error', fail);
    socket.once(event, () => {
      socket.off('error', fail);
      callback(null, socket);
    });
  };
  const secure = (over) => {
    const socket = tls.connect({ servername, ALPNProtocols: ['http/1.1'], ...over });
    finish(socket, 'secureConnect');
  };
  const proxy = proxyFor(protocol, host, port);
  if (!proxy && protocol === 'https:') secure({ host, port, localAddress });
  else if (!proxy) finish(net.connect({ host, port, localAddress }), 'connect');
  else {
    openTunnel(proxy, host, port, (error, socket) => {
      if (error) callback(error);
      else if (protocol === 'https:') secure({ host, socket });
      else callback(null, socket);
    });
  }
}

// Replaces the dispatcher of fetch, which the npm package undici uses too, by one of its own kind
// that connects through the proxy.
function patchFetch() {
  // Touching it loads the implementation, which then sets its dispatcher.
  if (!globalThis.Headers || !globalThis[DISPATCHER]) return;
  const Agent = globalThis[DISPATCHER].constructor;
  globalThis[DISPATCHER] = new Agent({ connect: connectForFetch });
}

if ((proxies['http:'] || proxies['https:']) && !globalThis[INSTALLED] && !knowsProxies()) {
  Object.defineProperty(globalThis, INSTALLED, { value: true });
  patchAgents(http.Agent.prototype, 'http:');
  patchAgents(https.Agent.prototype, 'https:');
  patchFetch();
}
