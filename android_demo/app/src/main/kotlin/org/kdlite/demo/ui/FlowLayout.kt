package org.kdlite.demo.ui

import android.content.Context
import android.util.AttributeSet
import android.view.View
import android.view.ViewGroup

/** Children side by side, in as many lines as they need: with large fonts no button is cut. */
class FlowLayout(context: Context, attributes: AttributeSet?) : ViewGroup(context, attributes) {
    private val gap = (8 * resources.displayMetrics.density).toInt()

    override fun onMeasure(widthSpec: Int, heightSpec: Int) {
        val width = MeasureSpec.getSize(widthSpec)
        val childWidth = MeasureSpec.makeMeasureSpec(width, MeasureSpec.AT_MOST)
        val free = MeasureSpec.makeMeasureSpec(0, MeasureSpec.UNSPECIFIED)
        for (child in shown()) child.measure(childWidth, free)
        val height = place(width) { _, _, _ -> }
        setMeasuredDimension(width, height)
    }

    override fun onLayout(changed: Boolean, l: Int, t: Int, r: Int, b: Int) {
        val width = r - l
        place(width) { child, x, y ->
            val left = if (layoutDirection == LAYOUT_DIRECTION_RTL) width - x - child.measuredWidth else x
            child.layout(left, y, left + child.measuredWidth, y + child.measuredHeight)
        }
    }

    private fun shown(): List<View> = (0 until childCount).map(::getChildAt).filter { it.visibility != GONE }

    private inline fun place(width: Int, put: (View, Int, Int) -> Unit): Int {
        var x = 0
        var y = 0
        var lineHeight = 0
        for (child in shown()) {
            if (x > 0 && x + child.measuredWidth > width) {
                x = 0
                y += lineHeight + gap
                lineHeight = 0
            }
            put(child, x, y)
            x += child.measuredWidth + gap
            lineHeight = maxOf(lineHeight, child.measuredHeight)
        }
        return y + lineHeight
    }
}
