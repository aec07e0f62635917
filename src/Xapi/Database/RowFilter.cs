// The expression of get_all_where and get_all_records_where (research: xapi.md 1.5):
//   expr   = term { "or" term }
//   term   = factor { "and" factor }
//   factor = "not" factor | "(" expr ")" | "true" | "false" | value "=" value
//   value  = "field" text | text          text in ' or ", \ escapes
// Values are the database's own texts. SM drivers run words together ("x"andfield "host"="y"), so no white space is needed anywhere.
using System.Text;

namespace Xapi.Database;

public sealed class RowFilter
{
    private const int LengthLimit = 64 * 1024;
    private const int DepthLimit = 64;
    private static readonly string[] Words = ["field", "true", "false", "and", "not", "or", "(", ")", "="];

    private readonly string text;
    private readonly ClassModel model;
    private int position;
    private string token = "";
    private string? literal;

    private RowFilter(string text, ClassModel model) => (this.text, this.model) = (text, model);

    /// <summary>The expression as a predicate over rows of a class; a row answers with the value of a field's index.</summary>
    /// <exception cref="XapiException">INVALID_VALUE: the expression is malformed, too long, or names an unknown field.</exception>
    public static Func<IRowValues, bool> Parse(string text, ClassModel model)
    {
        if (text.Length > LengthLimit)
            throw new XapiException("INVALID_VALUE", "expr", $"an expression of {text.Length} characters; the limit is {LengthLimit}");
        RowFilter filter = new(text, model);
        filter.Next();
        Func<IRowValues, bool> predicate = filter.Or(0);
        return filter.token.Length == 0 ? predicate : throw filter.Malformed("the end");
    }

    private Func<IRowValues, bool> Or(int depth)
    {
        List<Func<IRowValues, bool>> terms = [And(depth)];
        while (Take("or"))
            terms.Add(And(depth));
        return terms.Count == 1 ? terms[0] : row => terms.Exists(term => term(row));
    }

    private Func<IRowValues, bool> And(int depth)
    {
        List<Func<IRowValues, bool>> factors = [Factor(depth)];
        while (Take("and"))
            factors.Add(Factor(depth));
        return factors.Count == 1 ? factors[0] : row => factors.TrueForAll(factor => factor(row));
    }

    private Func<IRowValues, bool> Factor(int depth)
    {
        if (depth > DepthLimit)
            throw new XapiException("INVALID_VALUE", "expr", $"an expression nested deeper than {DepthLimit}");
        if (Take("not"))
        {
            Func<IRowValues, bool> inner = Factor(depth + 1);
            return row => !inner(row);
        }

        if (Take("("))
        {
            Func<IRowValues, bool> inner = Or(depth + 1);
            return Take(")") ? inner : throw Malformed("\")\"");
        }

        if (Take("true"))
            return static _ => true;
        if (Take("false"))
            return static _ => false;
        Func<IRowValues, string> left = Value();
        if (!Take("="))
            throw Malformed("\"=\"");
        Func<IRowValues, string> right = Value();
        return row => left(row) == right(row);
    }

    private Func<IRowValues, string> Value()
    {
        bool isField = Take("field");
        if (literal is not { } value)
            throw Malformed(isField ? "a field's name" : "a value");
        Next();
        if (!isField)
            return _ => value;
        if (value is "ref" or "_ref")
            return static row => row.Ref;
        // A column's name joins its namespace with two underscores (name__label), the public one with one.
        FieldModel field = model.Find(value) ?? model.Find(value.Replace("__", "_", StringComparison.Ordinal))
            ?? throw new XapiException("INVALID_VALUE", "expr", $"{model.Name} has no field \"{value}\"");
        return row => FieldType.ColumnText(row.Value(field));
    }

    private bool Take(string word)
    {
        if (token != word || literal is not null)
            return false;
        Next();
        return true;
    }

    private void Next()
    {
        literal = null;
        while (position < text.Length && char.IsWhiteSpace(text[position]))
            position++;
        if (position == text.Length)
        {
            token = "";
            return;
        }

        if (text[position] is '"' or '\'')
        {
            literal = Quoted(text[position++]);
            token = "text";
            return;
        }

        ReadOnlySpan<char> rest = text.AsSpan(position);
        foreach (string word in Words)
        {
            if (rest.StartsWith(word, StringComparison.Ordinal))
            {
                token = word;
                position += word.Length;
                return;
            }
        }

        token = text[position].ToString();
        throw Malformed("an expression");
    }

    private string Quoted(char quote)
    {
        StringBuilder value = new();
        while (position < text.Length && text[position] != quote)
        {
            if (text[position] == '\\' && position + 1 < text.Length)
                position++;
            value.Append(text[position++]);
        }

        if (position == text.Length)
            throw Malformed($"a closing {quote}");
        position++;
        return value.ToString();
    }

    private XapiException Malformed(string expected) =>
        new("INVALID_VALUE", "expr", $"{expected} was expected before character {position} of: {text}");
}

/// <summary>What a filter may ask a row.</summary>
public interface IRowValues
{
    string Ref { get; }

    StorageAccess.Wire.RpcValue Value(FieldModel field);
}
