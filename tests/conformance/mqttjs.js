// mqtt.js, told what to do by lines of JSON on standard input; each is answered by one, and each message that comes is one.
// The end of standard input disconnects. See other_programs.py.
const mqtt = require("mqtt");
const readline = require("node:readline");

let client;
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const answer = (error) => say({ error: error ? String(error) : "" });

const told = (topic, payload, packet) => {
  const more = packet.properties || {};
  say({
    topic,
    payload: payload.toString("base64"),
    qos: packet.qos,
    retain: packet.retain,
    contentType: more.contentType || "",
    responseTopic: more.responseTopic || "",
    correlation: more.correlationData ? more.correlationData.toString("base64") : "",
    user: Object.entries(more.userProperties || {}),
    expiry: more.messageExpiryInterval || 0,
  });
};

const open = ({ url, options }) => {
  let answered = false;
  const once = (error) => {
    if (!answered) answer(error);
    answered = true;
  };
  client = mqtt.connect(url, options);
  client.on("message", told);
  client.on("connect", () => once());
  client.on("error", once);
};

const publish = ({ topic, payload, qos, retain, properties }) => {
  if (properties.correlationData) properties.correlationData = Buffer.from(properties.correlationData, "base64");
  client.publish(topic, Buffer.from(payload, "base64"), { qos, retain, properties }, answer);
};

const todo = {
  open,
  publish,
  subscribe: ({ filter, qos }) => client.subscribe(filter, { qos }, answer),
  unsubscribe: ({ filter }) => client.unsubscribe(filter, answer),
};

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const what = JSON.parse(line);
    todo[what.do](what);
  })
  .on("close", () => {
    if (client && client.connected) client.end(false, {}, () => process.exit(0));
    else process.exit(0);
  });
