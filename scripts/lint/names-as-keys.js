import ts from 'typescript';

/** True for a string that is not known when the program is written. */
function isAnyString(type) {
  if (type.isUnion()) return type.types.some(isAnyString);
  if (type.isIntersection()) return type.types.some(isAnyString);
  return (type.flags & (ts.TypeFlags.String | ts.TypeFlags.TemplateLiteral)) !== 0;
}

/**
 * A plain object inherits `constructor`, `toString` and `__proto__`, which are names of functions too. What is known by names that are
 * not known here belongs into a `Map`; `byName` makes an object of one for JSON.
 */
export const namesAsKeys = {
  meta: {
    type: 'problem',
    schema: [],
    messages: {
      key: 'A name is used as a key of a plain object, which inherits "constructor" and "__proto__": use a Map (byName makes an object of it for JSON).',
    },
  },
  create(context) {
    const services = context.sourceCode.parserServices;
    const check = (node, object, key) => {
      const hasNames =
        services.getTypeAtLocation(object).getNonNullableType().getStringIndexType() !== undefined;
      if (hasNames && isAnyString(services.getTypeAtLocation(key)))
        context.report({ node, messageId: 'key' });
    };
    return {
      'MemberExpression[computed=true]'(node) {
        check(node, node.object, node.property);
      },
      'BinaryExpression[operator="in"]'(node) {
        check(node, node.right, node.left);
      },
    };
  },
};
